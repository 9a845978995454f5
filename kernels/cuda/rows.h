// What happens to rows between products: embedding, norms, quantisation, the SwiGLU product, rotary
// positions and the KV record. FP32 inside, one rounding where the profile lists it.
//
// Order of a norm's sum of squares: 256 sums of every 256th value by multiply-adds, then halves
// within each 32, then the eight of these in order.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/launch.h"
#include "kernels/kv_view.h"
#include "kernels/tensor.h"

namespace epic::kernels::cuda {

// Where rows of `columns` go: rounded to BF16, and from there, if wanted, to E4M3 with a scale per
// 128 columns: scale = max(largest |value|, 1e-4)/448, code = value·(1/scale).
struct RowOutputs {
  BF16* rounded = nullptr;   // [rows, columns], or null
  uint8_t* codes = nullptr;  // E4M3 [rows, columns], or null
  float* scales = nullptr;   // [ceil(columns/128), scale_stride]; masked: one such per group
  int scale_stride = 0;
};

// Rows of `groups` groups of `places` places, of which the first group_rows[g] are taken; null:
// all.
struct RowPlaces {
  int groups = 1;
  int places = 0;
  const int32_t* group_rows = nullptr;
};

// One block of threads per row.
struct NormArguments {
  int rows = 0;
  int columns = 0;
  const float* x = nullptr;  // rows of x_stride
  int x_stride = 0;
  const int32_t* x_rows = nullptr;  // [rows]: which; null: 0, 1, …
  const float* weight = nullptr;    // [columns]
  float eps = 0;
  RowOutputs out;
};
// x·weight/√(mean x² + eps).
void RmsNorm(Stream stream, const NormArguments& arguments);

// Rows that are BF16 already: only codes and scales are written.
struct QuantiseArguments {
  RowPlaces rows;
  int columns = 0;
  const BF16* x = nullptr;  // [rows, columns]
  RowOutputs out;
};
void QuantiseRows(Stream stream, const QuantiseArguments& arguments);

struct SwiGluArguments {
  RowPlaces rows;
  int columns = 0;                 // of the product
  int up_offset = 0;               // where `up` starts, at least columns; 0: columns
  const float* gate_up = nullptr;  // [rows, up_offset + columns]: gate, then up
  RowOutputs out;
};
// silu(gate)·up.
void SwiGlu(Stream stream, const SwiGluArguments& arguments);

// residual ← the tokens' rows of a table, BF16 or F32.
struct EmbedArguments {
  int rows = 0;
  int columns = 0;
  DType type = DType::kBF16;
  const void* table = nullptr;
  const int32_t* token_ids = nullptr;  // [rows]
  float* residual = nullptr;           // [rows, columns]
};
void EmbedRows(Stream stream, const EmbedArguments& arguments);

// Pairs are (2i, 2i + 1), or (i, i + rope_dim/2) if not interleaved. cos and sin: [rows,
// rope_dim/2] of RopeTable.
struct RopeTables {
  const float* cos = nullptr;
  const float* sin = nullptr;
  bool interleaved = true;
};

// The heads of q, [rows, heads, nope_dim + rope_dim], are taken apart: the first part rounded, the
// second rotated and rounded into the absorbed query's end.
struct QueryArguments {
  int rows = 0;
  int heads = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int latent_dim = 0;
  const float* q = nullptr;  // rows of q_stride
  int q_stride = 0;
  RopeTables rope;
  BF16* nope = nullptr;   // [rows, heads, nope_dim]
  BF16* query = nullptr;  // [rows, heads, latent_dim + rope_dim]; only the end is written
};
void SplitQuery(Stream stream, const QueryArguments& arguments);

// The KV records of the step's rows: [normed latent | rotated key] as BF16, of either type of
// layout, with the bytes of kernels/kv_record.h; padding becomes zeros.
struct RecordArguments {
  int rows = 0;
  KvLayout layout;
  const float* kv = nullptr;  // [rows, latent_dim + rope_dim], rows of kv_stride
  int kv_stride = 0;
  const float* weight = nullptr;
  float eps = 0;
  RopeTables rope;
  std::byte* slab = nullptr;  // of the layer
  // [rows]: page·64 + place of each row's record; −1: it has none.
  const int32_t* record_index = nullptr;
};
void WriteRecords(Stream stream, const RecordArguments& arguments);

}  // namespace epic::kernels::cuda
