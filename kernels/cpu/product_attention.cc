#include "kernels/cpu/product_attention.h"

#include <xmmintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/check.h"
#include "kernels/kv_view.h"

namespace epic::kernels {
namespace {

// Rows of weights are as long for a short split as for a whole one: one layout of the scratch
// serves all.
constexpr int64_t kWeightRowBytes = TileRowBytes(kSplitTokens);

constexpr int64_t Padded(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Bytes of a row of keys, and of a packed query.
int64_t RowBytes(int64_t width) { return Padded(width, kBf16TileInputs) * 2; }

// Fetches into the second level of cache: the first is full of values that are packed now.
void Prefetch(const std::byte* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T1);
  }
}

bool Finite(const std::byte* values, int count) {
  bool finite = true;
  for (int i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, values + 2 * i, 2);
    finite = finite && (bits & 0x7f80u) != 0x7f80u;
  }
  return finite;
}

}  // namespace

struct ProductAttention::Buffers {
  std::byte* queries;  // packed: [lanes / 16][tiles of the width]
  float* scores;       // [keys][lanes]
  std::byte* weights;  // rows of kWeightRowBytes, one for each lane
  std::byte* values;   // packed: [value_dim / 16][tiles of the keys]
  float* sums;         // [lanes][value_dim padded]
  std::byte* keys;     // [64] rows, where they are copied
  std::byte* gemm;

  Buffers(const AttentionTile& tile, std::byte* scratch) {
    const Sizes sizes(tile.latent_dim + tile.rope_dim, tile.value_dim);
    queries = scratch;
    scores = reinterpret_cast<float*>(queries + sizes.queries);
    weights = queries + sizes.queries + sizes.scores;
    values = weights + sizes.weights;
    sums = reinterpret_cast<float*>(values + sizes.values);
    keys = values + sizes.values + sizes.sums;
    gemm = keys + sizes.keys;
  }

  // In bytes, multiples of 64.
  struct Sizes {
    int64_t queries, scores, weights, values, sums, keys, gemm;

    Sizes(int64_t width, int64_t value_dim) {
      constexpr int64_t kLanesMax = AttentionTile::kLanesMax;
      const int64_t value_columns = Padded(value_dim, kTilePanel);
      queries = kLanesMax * RowBytes(width);
      scores = 4 * kSplitTokens * kLanesMax;
      weights = kLanesMax * kWeightRowBytes;
      values = value_columns * 2 * kSplitTokens;
      sums = 4 * kLanesMax * value_columns;
      keys = kPageTokens * RowBytes(width) + 64;
      gemm = std::max(kAmxScratchBytes, kAvx512Bf16ScratchBytes);
    }
    int64_t total() const { return queries + scores + weights + values + sums + keys + gemm; }
  };
};

int64_t ProductAttention::ScratchBytes(int key_width, int value_dim, bool /*values_apart*/) const {
  return Buffers::Sizes(key_width, value_dim).total();
}

void ProductAttention::Load(const AttentionTile& tile, std::byte* scratch) const {
  const Buffers buffers(tile, scratch);
  const int width = tile.latent_dim + tile.rope_dim;
  const int64_t panel_bytes = TilePanelBytes(width, DType::kBF16);
  // Lanes past the tile's and inputs past the width are zeros: they are multiplied like the rest.
  std::memset(buffers.queries, 0, tile.stride / kTilePanel * panel_bytes);
  for (int lane = 0; lane < tile.lanes; ++lane) {
    std::byte* panel = buffers.queries + lane / kTilePanel * panel_bytes + lane % kTilePanel * 4;
    const BF16* query = tile.queries[lane];
    for (int i = 0; i + 2 <= width; i += 2) std::memcpy(panel + i / 2 * 64, query + i, 4);
    if (width % 2 == 1) std::memcpy(panel + width / 2 * 64, query + width - 1, 2);
  }
}

void ProductAttention::Multiply(const std::byte* rows, int64_t row_stride, int64_t m,
                                PackedWeight weight, float* c, int64_t c_stride,
                                const Buffers& buffers) const {
  family_.Gemm({.prepared = rows,
                .prepared_stride = row_stride,
                .m = m,
                .weight = weight,
                .n_end = weight.n,
                .c = c,
                .c_stride = c_stride,
                .scratch = buffers.gemm});
}

ProductAttention::Rows ProductAttention::Records(const AttentionTile& tile, const std::byte* page,
                                                 int count, const Buffers& buffers) const {
  const int width = tile.latent_dim + tile.rope_dim;
  // A BF16 record whose latent needs no padding is already a row as products want it.
  const bool as_stored =
      !tile.fp8 && tile.rope_offset_bytes == 2 * tile.latent_dim && width % kBf16TileInputs == 0;
  Rows rows = {page, tile.record_bytes, page + tile.values_offset_bytes, tile.record_bytes, count};
  if (as_stored) return rows;
  rows.keys = buffers.keys;
  rows.key_stride = RowBytes(width);
  for (int i = 0; i < count; ++i) {
    ops_.key_row(tile, page + i * tile.record_bytes,
                 reinterpret_cast<BF16*>(buffers.keys + i * rows.key_stride));
  }
  if (tile.values_offset_bytes == 0) {
    rows.values = rows.keys;
    rows.value_stride = rows.key_stride;
  }
  return rows;
}

// Packs the values of keys [first, first + rows.count) of a split's `keys`, and zeros up to the end
// of a tile.
void ProductAttention::PackValues(const AttentionTile& tile, const Rows& rows, int first, int keys,
                                  const std::byte* next, const Buffers& buffers) const {
  constexpr int kTilePairs = kBf16TileInputs / 2;
  // The panels are as long as this split's keys: the product over them reads no stale tile.
  const int64_t panel_bytes = TilePanelBytes(keys, DType::kBF16);
  const auto pairs = static_cast<int>(Padded(rows.count, kBf16TileInputs) / 2);
  static_assert(kPageTokens % (2 * kTilePairs) == 0);
  const int64_t next_bytes = next == nullptr ? 0 : kPageTokens * tile.record_bytes / pairs;
  for (int i = 0; i < pairs; ++i) {
    // The next page comes while this one is packed, a share with each pair of keys.
    Prefetch(next + i * next_bytes, next_bytes);
    const auto row = [&](int key) {
      const std::byte* at = key < rows.count ? rows.values + key * rows.value_stride : nullptr;
      return reinterpret_cast<const BF16*>(at);
    };
    ops_.interleave(row(2 * i), row(2 * i + 1), tile.value_dim,
                    buffers.values + (first / 2 + i) * 64, panel_bytes);
  }
}

void ProductAttention::SplitWhole(const AttentionTile& tile, const std::byte* const* pages,
                                  int key_begin, int key_end, const Buffers& buffers,
                                  float* partial) const {
  const int keys = key_end - key_begin;
  const int width = tile.latent_dim + tile.rope_dim;
  const PackedWeight queries{buffers.queries, tile.stride, width};
  for (int first = 0; first < keys; first += kPageTokens) {
    const std::byte* const* page = pages + first / kPageTokens;
    const Rows rows = Records(tile, *page, std::min(kPageTokens, keys - first), buffers);
    Multiply(rows.keys, rows.key_stride, rows.count, queries,
             buffers.scores + int64_t{first} * tile.stride, tile.stride, buffers);
    PackValues(tile, rows, first, keys, page[1], buffers);
  }
  ops_.key_weights(tile, key_begin, keys, buffers.scores, buffers.weights, kWeightRowBytes,
                   partial);
  // Weights are the rows, and values the packed weight, of one product over the split's keys.
  const int64_t sum_stride = Padded(tile.value_dim, kTilePanel);
  Multiply(buffers.weights, kWeightRowBytes, tile.lanes, {buffers.values, tile.value_dim, keys},
           buffers.sums, sum_stride, buffers);
  // The product writes the tile's lanes only, and the transposition reads whole vectors of them.
  std::memset(buffers.sums + tile.lanes * sum_stride, 0,
              4 * (tile.stride - tile.lanes) * sum_stride);
  ops_.transpose(buffers.sums, sum_stride, tile.stride, tile.value_dim, partial + 2 * tile.stride);
}

// Whether every key that some lane must not see has finite values. A weight of 0 hides finite
// values from a sum, but 0 · NaN and 0 · ∞ are NaN.
bool ProductAttention::AllSeenOrFinite(const AttentionTile& tile, const std::byte* const* pages,
                                       int key_begin, int key_end, const Buffers& buffers) const {
  const int lowest = *std::min_element(tile.positions, tile.positions + tile.lanes);
  for (int key = std::max(key_begin, lowest + 1); key < key_end; ++key) {
    const int in_split = key - key_begin;
    const std::byte* record =
        pages[in_split / kPageTokens] + in_split % kPageTokens * tile.record_bytes;
    if (!Finite(Records(tile, record, 1, buffers).values, tile.value_dim)) return false;
  }
  return true;
}

// Takes the lanes of each row by themselves, so that they meet no key after them, not even as 0 ·
// NaN.
void ProductAttention::SplitByRow(const AttentionTile& tile, const std::byte* const* pages,
                                  int key_begin, int key_end, std::byte* scratch,
                                  float* partial) const {
  // Rare: a NaN in a prompt. So it may allocate.
  std::vector<float> memory(AttentionPartialFloats(tile.value_dim, tile.stride) + 16);
  for (int lane = 0; lane < tile.lanes;) {
    AttentionTile row = tile;
    row.lanes = 0;
    // Lanes of one row stand together and have one position.
    while (lane + row.lanes < tile.lanes &&
           tile.positions[lane + row.lanes] == tile.positions[lane]) {
      row.queries[row.lanes] = tile.queries[lane + row.lanes];
      row.positions[row.lanes++] = tile.positions[lane];
    }
    row.stride = static_cast<int>(Padded(row.lanes, kLanes));
    Load(row, scratch);
    const int end = std::min(key_end, std::max(key_begin, tile.positions[lane]) + 1);
    SplitWhole(row, pages, key_begin, end, Buffers(row, scratch), memory.data());
    for (int i = 0; i < 2 + tile.value_dim; ++i) {
      std::memcpy(partial + int64_t{i} * tile.stride + lane,
                  memory.data() + int64_t{i} * row.stride, 4 * row.lanes);
    }
    lane += row.lanes;
  }
  // The next split finds the whole tile's queries again.
  Load(tile, scratch);
}

void ProductAttention::Split(const AttentionTile& tile, const std::byte* const* pages,
                             int key_begin, int key_end, std::byte* scratch, float* partial) const {
  KERNEL_CHECK(tile.lanes > 0 && tile.lanes <= AttentionTile::kLanesMax, "%d lanes", tile.lanes);
  KERNEL_CHECK(key_begin < key_end && key_end - key_begin <= kSplitTokens, "keys %d to %d",
               key_begin, key_end);
  const Buffers buffers(tile, scratch);
  if (!AllSeenOrFinite(tile, pages, key_begin, key_end, buffers)) {
    return SplitByRow(tile, pages, key_begin, key_end, scratch, partial);
  }
  SplitWhole(tile, pages, key_begin, key_end, buffers, partial);
}

}  // namespace epic::kernels
