#include "kernels/kv_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/testing/random.h"

namespace epic::kernels {
namespace {

TEST(KvLayout, PadsEachPartTo16Bytes) {
  const KvLayout v3{.latent_dim = 512, .rope_dim = 64, .type = KvType::kFP8};
  EXPECT_EQ(v3.record_bytes(), 512 + 16 + 128);
  EXPECT_EQ((KvLayout{.latent_dim = 512, .rope_dim = 64}).record_bytes(), 1024 + 128);
  const KvLayout odd{.latent_dim = 130, .rope_dim = 6, .type = KvType::kFP8};
  EXPECT_EQ(odd.scales_offset_bytes(), 144);
  EXPECT_EQ(odd.scale_count(), 2);
  EXPECT_EQ(odd.rope_offset_bytes(), 160);
  EXPECT_EQ(odd.record_bytes(), 176);
}

TEST(KvScale, IsTheLeastPowerOfTwoThatReaches) {
  EXPECT_EQ(KvScale(448), 1);
  EXPECT_EQ(KvScale(std::nextafter(448.0f, 500.0f)), 2);
  EXPECT_EQ(KvScale(225), 1);
  EXPECT_EQ(KvScale(224), 0.5f);
  EXPECT_EQ(KvScale(0), 0x1p-100f);
  EXPECT_EQ(KvScale(1e-37f), 0x1p-100f);
  EXPECT_EQ(KvScale(3.3e38f), 0x1p120f);
  EXPECT_TRUE(std::isnan(KvScale(std::numeric_limits<float>::infinity())));
}

TEST(KvRecord, KeepsFP8ValuesWithinAnEighthOfTheirSizeAndExactlyInBF16) {
  Random random(3);
  for (int trial = 0; trial < 50; ++trial) {
    const KvLayout layout{random.Integer(1, 300), 8, KvType::kFP8};
    std::vector<BF16> latent(layout.latent_dim);
    const float range = std::ldexp(1.0f, random.Integer(-20, 20));
    float largest = 0;
    for (BF16& value : latent) value = ToBF16(random.Real(range));
    std::vector<std::byte> record(layout.record_bytes());
    WriteLatent(layout, latent.data(), record.data());
    for (int i = 0; i < layout.latent_dim; ++i) {
      if (i % kKvScaleBlock == 0) {
        largest = 0;
        for (int j = i; j < std::min(layout.latent_dim, i + kKvScaleBlock); ++j) {
          largest = std::max(largest, std::abs(ToFloat(latent[j])));
        }
      }
      const float value = ToFloat(latent[i]);
      const float kept = ReadLatent(layout, record.data(), i);
      EXPECT_LE(std::abs(kept - value), std::max(std::abs(value) / 16, largest * 0x1p-17f));
      EXPECT_EQ(kept, RoundToBF16(kept));
    }
  }
}

TEST(KvRecord, ABlockThatIsNotFiniteIsNaNAndOthersAreNot) {
  const KvLayout layout{256, 8, KvType::kFP8};
  for (const uint16_t bad : {0x7fc0, 0xff80}) {
    std::vector<BF16> latent(256, BF16{0x3f80});
    latent[130] = {bad};
    std::vector<std::byte> record(layout.record_bytes());
    WriteLatent(layout, latent.data(), record.data());
    for (int i = 0; i < 256; ++i) {
      EXPECT_EQ(std::isnan(ReadLatent(layout, record.data(), i)), i >= 128) << i;
    }
  }
}

}  // namespace
}  // namespace epic::kernels
