// models/tiny-r1 on a card, where there is one.
#include <iostream>

#include "gtest/gtest.h"
#include "kernels/cuda/backend.h"
#include "tests/golden/golden_backends.h"
#include "tests/golden/golden_run.h"
#include "tests/golden/tiny_r1.h"

namespace epic::golden {
namespace {

constexpr int kPrompts = 12;

TEST(CardTest, TinyR1AnswersAsTheOracle) {
  for (const kernels::KvType kv_type : {kernels::KvType::kBF16, kernels::KvType::kFP8}) {
    const auto device = kernels::MakeCudaBackend({.kv_type = kv_type});
    if (device.backend == nullptr) {
      std::cout << "skipped: " << device.error << std::endl;
      GTEST_SKIP();
    }
    EXPECT_TRUE(device.notes.empty()) << device.notes[0];
    // FP8 activations may choose another word where two are nearly as likely.
    EXPECT_GE(EqualAnswers(*device.backend, kPrompts), kPrompts - 5);
  }
}

TEST(CardTest, NoChunkingOrMixChangesABit) {
  const auto device = kernels::MakeCudaBackend({});
  if (device.backend == nullptr) GTEST_SKIP();
  const auto model = Loaded("models/tiny-r1", *device.backend);
  ASSERT_NE(model, nullptr);
  std::vector<std::vector<int32_t>> sequences(3);
  for (int i = 0; i < 300; ++i) sequences[i % 3].push_back((i * 37 + 11) % 1000);
  const Logits expected = model->Run(sequences, OneByOne(sequences, 1 << 20));
  for (const int rows : {1, 7, 64}) {
    EXPECT_TRUE(model->Run(sequences, OneByOne(sequences, rows)) == expected) << rows;
  }
  EXPECT_TRUE(model->Run(sequences, SideBySide(sequences)) == expected);
}

}  // namespace
}  // namespace epic::golden
