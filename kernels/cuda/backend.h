// The CUDA backend: one NVIDIA card of compute capability 9.0 (H100, H200).
//
// Numeric family sm90 (docs/numerics.md): weights that are FP8 in the checkpoint are multiplied
// with rows quantised to E4M3 per 128 columns, all others in BF16.
//
// In builds without CUDA it cannot be made, and says so. The tests run the same sources over the
// emulated device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace epic::kernels {

struct CudaOptions {
  int ordinal = 0;  // of the cards that this process sees
  KvType kv_type = KvType::kBF16;
  bool graphs = true;  // replay small steps as CUDA graphs; changes no bit
};

struct CudaBackendResult {
  std::unique_ptr<Backend> backend;  // null if `error` is set
  std::string error;                 // what is missing
  std::vector<std::string> notes;    // tiles that failed their test and are not used
  int64_t free_bytes = 0;            // of the card's memory
};

// Tests every tile of its products on the card before it uses any.
CudaBackendResult MakeCudaBackend(const CudaOptions& options);

// The sizes of a model that the kernels must be made for.
struct CudaModelShape {
  int hidden = 0;
  int q_rank = 0;  // 0: none
  int kv_rank = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int v_dim = 0;
  int heads = 0;
  int vocab = 0;
  std::vector<int> intermediates;  // of every MLP: dense, shared, experts
  GateShape gate;
};
// The first limit that `shape` breaks, with field, value and limit; empty: it breaks none.
std::string CudaShapeProblem(const CudaModelShape& shape);
// Bytes of the card that steps of `rows_max` rows take beside weights, pages and the caller's
// buffers: an upper estimate.
int64_t CudaScratchBytes(const CudaModelShape& shape, int rows_max, int logit_rows);

}  // namespace epic::kernels
