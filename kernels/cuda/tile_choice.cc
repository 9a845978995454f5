#include "kernels/cuda/tile_choice.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "kernels/number.h"
#include "kernels/tensor.h"

namespace epic::kernels::cuda {
namespace {

constexpr int kFewRows = 5;          // in the smallest tile, with room left in it
constexpr float kTolerance = 1e-2f;  // the tensor core keeps about 14 bits of a block's sum

int Blocks(int count) { return (count + kScaleBlock - 1) / kScaleBlock; }

// One problem, on the host and on the device. Its values are exact in E4M3 and BF16, so the only
// error is that of sums.
class Problem {
 public:
  Problem(DeviceHeap& heap, GemmType type)
      : heap_(heap),
        fp8_(type == GemmType::kE4M3),
        rows_(heap.runtime().tile_test().rows),
        n_(heap.runtime().tile_test().n),
        k_(heap.runtime().tile_test().k),
        x_(Values(rows_ * k_)),
        w_(Values(n_ * k_)),
        x_scales_(Scales(k_blocks_ * stride_)),
        w_scales_(Scales(Blocks(n_) * k_blocks_)),
        x_memory_(UploadCodes(x_)),
        w_memory_(UploadCodes(w_)),
        x_scale_memory_(Upload(x_scales_)),
        w_scale_memory_(Upload(w_scales_)),
        segment_memory_(Upload(std::vector<int32_t>(Blocks(rows_), 1))),
        out_(heap.Allocate(int64_t{rows_} * n_ * 4, MemoryUse::kHost)) {
    arguments_ = {.type = type,
                  .n = n_,
                  .k = k_,
                  .x = x_memory_->data(),
                  .x_scale = reinterpret_cast<const float*>(x_scale_memory_->data()),
                  .x_scale_stride = stride_,
                  .w = w_memory_->data(),
                  .w_scale = reinterpret_cast<const float*>(w_scale_memory_->data()),
                  .out = out_->data(),
                  .sm_count = heap.runtime().sm_count()};
  }

  // The first kFewRows rows of the product, alone or beside others.
  std::vector<float> Run(const TileProduct& product, int tile, bool beside_others) {
    BlockGemmArguments a = arguments_;
    a.row_tile = tile;
    a.rows = beside_others ? rows_ : kFewRows;
    return Run(product, a);
  }
  // The same as the second of two groups that lie apart.
  std::vector<float> RunInGroups(const TileProduct& product, int tile) {
    BlockGemmArguments a = arguments_;
    const TensorMap map = WeightMap(a.type, a.w, n_, k_, ColumnTile(tile));
    // The maps stand in device memory: experts' weights are reached so, and the plain runs do not
    // try it.
    const auto maps = Upload(std::vector<TensorMap>{map, map});
    const auto scales = Upload(std::vector<const float*>{a.w_scale, a.w_scale});
    a.row_tile = tile;
    a.rows = rows_;
    a.layout = GemmLayout::kContiguous;
    a.groups = 2;
    a.segment_group = reinterpret_cast<const int32_t*>(segment_memory_->data());
    a.w_maps = reinterpret_cast<const TensorMap*>(maps->data());
    a.w_scales = reinterpret_cast<const float* const*>(scales->data());
    return Run(product, a);
  }

  bool Near(const std::vector<float>& result) const {
    for (int i = 0; i < kFewRows * n_; ++i) {
      const float expected = Expected(i / n_, i % n_);
      const float limit = kTolerance * std::fmax(1.0f, std::fabs(expected));
      // The comparison is negated, so that a NaN is not near.
      if (!(std::fabs(result[i] - expected) <= limit)) return false;
    }
    return true;
  }

 private:
  std::vector<float> Run(const TileProduct& product, const BlockGemmArguments& a) {
    // What a tile leaves unwritten must not pass with the last tile's values.
    heap_.runtime().Zero(out_->data(), out_->bytes());
    product(heap_.runtime().stream(), a);
    heap_.runtime().Wait();
    std::vector<float> result(kFewRows * n_);
    std::memcpy(result.data(), out_->data(), result.size() * sizeof(float));
    return result;
  }

  // In [-1, 1), exact in E4M3 and BF16.
  std::vector<float> Values(int count) {
    std::vector<float> values(count);
    for (float& value : values) value = E4M3ToFloat(ToE4M3(Draw() * 2 - 1));
    return values;
  }
  std::vector<float> Scales(int count) {
    std::vector<float> scales(count);
    // The scales differ, so that one from the wrong place shows.
    for (float& scale : scales) scale = 0.25f + Draw() / 2;
    return scales;
  }
  float Draw() {
    // The seed is fixed and the constants are Knuth's (MMIX): every start tests the same problem,
    // so a rejection can be repeated.
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) * 0x1p-24f;
  }

  template <typename T>
  std::unique_ptr<DeviceMemory> Upload(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    auto memory = heap_.Allocate(bytes, MemoryUse::kOperations);
    heap_.runtime().Upload(memory->data(), values.data(), bytes);
    return memory;
  }
  std::unique_ptr<DeviceMemory> UploadCodes(const std::vector<float>& values) {
    std::vector<uint8_t> codes;
    std::vector<BF16> rounded;
    for (const float value : values) {
      codes.push_back(ToE4M3(value));
      rounded.push_back(ToBF16(value));
    }
    return fp8_ ? Upload(codes) : Upload(rounded);
  }

  float Expected(int row, int n) const {
    float sum = 0;
    for (int b = 0; b < k_blocks_; ++b) {
      float block = 0;
      for (int k = b * kScaleBlock; k < std::min(k_, (b + 1) * kScaleBlock); ++k) {
        block += x_[row * k_ + k] * w_[n * k_ + k];
      }
      const float w_scale = w_scales_[n / kScaleBlock * k_blocks_ + b];
      sum += fp8_ ? block * x_scales_[b * stride_ + row] * w_scale : block;
    }
    return sum;
  }

  DeviceHeap& heap_;
  const bool fp8_;
  const int rows_, n_, k_;
  const int k_blocks_ = Blocks(k_);
  const int stride_ = (rows_ + 3) / 4 * 4;
  // Members are initialised in this order: the sizes and the state of the draws come before the
  // values that need them.
  uint64_t state_ = 1;
  const std::vector<float> x_, w_, x_scales_, w_scales_;
  const std::unique_ptr<DeviceMemory> x_memory_, w_memory_, x_scale_memory_, w_scale_memory_,
      segment_memory_, out_;
  BlockGemmArguments arguments_;
};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TileChoice TileChoice::Test(DeviceHeap& heap, const TileProduct& product) {
  TileChoice choice;
  choice.TestType(heap, product, GemmType::kE4M3);
  choice.TestType(heap, product, GemmType::kBF16);
  return choice;
}

void TileChoice::TestType(DeviceHeap& heap, const TileProduct& product, GemmType type) {
  const bool fp8 = type == GemmType::kE4M3;
  std::vector<int>& admitted = admitted_[fp8 ? 0 : 1];
  Problem problem(heap, type);
  std::vector<float> first;  // of the first admitted
  std::vector<int> tiles(std::begin(kRowTiles), std::end(kRowTiles));
  // From the largest down: a tile that errs is replaced by a larger one, so those must be sound
  // first.
  std::ranges::reverse(tiles);
  for (const int tile : tiles) {
    // The few rows leave room in the tile: this shows whether its empty places reach them.
    const std::vector<float> few = problem.Run(product, tile, false);
    const char* fault = nullptr;
    if (!problem.Near(few)) {
      fault = "gives wrong results";
    } else if (!SameBits(problem.Run(product, tile, true), few)) {
      fault = "gives a row other bits beside other rows";
    } else if (!SameBits(problem.RunInGroups(product, tile), few)) {
      fault = "gives a row other bits in a group";
    } else if (!admitted.empty() && !SameBits(few, first)) {
      fault = "gives a row other bits than larger tiles";
    }
    if (fault != nullptr) {
      rejections_.push_back(std::string(fp8 ? "FP8" : "BF16") + " tile of " + std::to_string(tile) +
                            " rows is not used: it " + fault);
      continue;
    }
    if (admitted.empty()) first = few;
    admitted.insert(admitted.begin(), tile);
  }
}

int TileChoice::For(GemmType type, GemmLayout layout, int rows) const {
  const std::vector<int>& tiles = admitted(type);
  // A segment is as long as the largest tile: smaller tiles would only be more in number.
  if (layout == GemmLayout::kContiguous) return tiles.back();
  for (const int tile : tiles) {
    if (tile >= rows) return tile;
  }
  return tiles.back();
}

}  // namespace epic::kernels::cuda
