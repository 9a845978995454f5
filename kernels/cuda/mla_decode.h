// Absorbed MLA over the paged KV cache, for prompt and generated rows alike.
//
//   out[t, h] = Σ_j softmax_j(scale·query[t, h]·record[j])·latent[j],   j = 0 .. position of row t
//
// Keys go in blocks of 64 at absolute positions inside splits of `split_tokens` at absolute
// positions; a split yields (maximum, sum, output) in FP32, and a row's splits are merged in
// ascending order. Scores are FP32, weights are rounded to BF16 before they meet the latents, their
// sum is not. A row's bits depend on its query, its records and split_tokens alone.
//
// Records are BF16, [latent | rope], or FP8, [latent as E4M3 | an FP32 scale per 128 of it | rope
// as BF16], each part padded to 16 bytes; an FP8 latent counts as code·scale, rounded to BF16.
//
// Heads of consecutive rows of one sequence share tiles of 64 queries. A record that is not finite
// reaches the rows of its own tile only; records past a tile's last position are never multiplied.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/limits.h"
#include "kernels/kv_view.h"
#include "kernels/step_plan.h"
#include "kernels/tensor.h"

namespace epic::kernels::cuda {

// The rows of one WGMMA (hardware).
inline constexpr int kMlaTileQueries = 64;

// A query is a pair (row, head), numbered row·heads + head.
struct MlaTile {
  int32_t query = 0;       // first
  int32_t queries = 0;     // 1 .. 64, of one sequence
  int32_t first_unit = 0;  // of its units, one per split, ascending
};

// The work that a block takes at a time: one split of one tile.
struct MlaUnit {
  int32_t query = 0;
  int32_t queries = 0;
  int32_t first_page = 0;  // where the sequence's page table starts
  int32_t key_begin = 0;   // a multiple of the split
  int32_t key_end = 0;     // past the tile's last key in this split
  int32_t partial = 0;     // first of 64 rows in the partial results; −1: the tile has one split
};

struct MlaPlan {
  std::vector<MlaTile> tiles;
  std::vector<MlaUnit> units;
  int partial_rows = 0;
};

// Made once a step, read by every layer.
MlaPlan PlanMla(const StepPlan& plan, int heads, int split_tokens);
// The same tiles as plans of their own, for launches one after another. Each has at most
// partial_rows_max partial rows, or is one tile: a long context's prompt has gigabytes of them.
std::vector<MlaPlan> BatchesOf(const MlaPlan& plan, int partial_rows_max);

// The layout of a record with a latent of that type.
constexpr KvLayout MlaLayout(KvType type, int latent_dim) {
  return {.latent_dim = latent_dim, .rope_dim = kMlaRopeDim, .type = type};
}

// `sum` adds up unrounded weights, which are relative to `maximum`.
struct MlaState {
  float maximum;
  float sum;
};

// Pointers are to device memory. latent_dim is 128 or 512, the records' rope_dim 64.
struct MlaArguments {
  KvType kv_type = KvType::kBF16;
  int rows = 0;
  int heads = 0;
  int latent_dim = 0;
  int split_tokens = kSplitTokens;  // a multiple of 64
  float softmax_scale = 0;
  const BF16* query = nullptr;      // [rows, heads, latent_dim + 64], 16-byte aligned
  const std::byte* slab = nullptr;  // [page_count, 64 records] of one layer
  int page_count = 0;
  const int32_t* pages = nullptr;      // StepPlan::pages
  const int32_t* positions = nullptr;  // StepPlan::positions
  const MlaTile* tiles = nullptr;
  const MlaUnit* units = nullptr;
  int tile_count = 0;
  int unit_count = 0;
  // Set where a recorded launch must serve other plans too: how many tiles and units a plan has,
  // [tiles, units], at most tile_count and unit_count. Splits are merged if there may be more units
  // than tiles.
  const int32_t* counts = nullptr;
  float* partial_values = nullptr;     // [partial_rows, latent_dim]
  MlaState* partial_states = nullptr;  // [partial_rows]
  BF16* out = nullptr;                 // [rows, heads, latent_dim]
  int sm_count = 132;
};

// The boxes that the launch copies: of the queries, and of the slab's records (of FP8 records the
// latents).
TileShape MlaQueryTile(const MlaArguments& arguments);
TileShape MlaRecordTile(const MlaArguments& arguments);
TileShape MlaRecordEndTile(const MlaArguments& arguments);  // of FP8 records: scales and rope

void MlaDecode(Stream stream, const MlaArguments& arguments);

}  // namespace epic::kernels::cuda
