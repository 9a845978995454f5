#include "kernels/cuda/bench/library_gemm.h"

#ifdef EPIC_CUBLASLT
#include <cublasLt.h>

#include "kernels/cuda/device/launch.h"

namespace epic::kernels::cuda {
namespace {

constexpr size_t kWorkspaceBytes = 64 << 20;

void Check(cublasStatus_t status, const char* what) {
  CheckCuda(status == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown, what);
}

template <typename T>
void Set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t name, T value) {
  Check(cublasLtMatmulDescSetAttribute(product, name, &value, sizeof(value)), "cublasLt attribute");
}

cublasLtMatrixLayout_t Layout(cudaDataType_t type, int rows, int columns) {
  cublasLtMatrixLayout_t layout;
  Check(cublasLtMatrixLayoutCreate(&layout, type, rows, columns, rows), "cublasLt layout");
  return layout;
}

}  // namespace

// In the library's column-major words: Dᵀ[n, rows] = (w as [k, n])ᵀ · (x as [k, rows]).
std::function<void()> MakeLibraryGemm(const LibraryGemm& gemm) {
  static cublasLtHandle_t handle = [] {
    cublasLtHandle_t made;
    Check(cublasLtCreate(&made), "cublasLtCreate");
    return made;
  }();
  static void* const workspace = [] {
    void* made = nullptr;
    CheckCuda(cudaMalloc(&made, kWorkspaceBytes), "cudaMalloc");
    return made;
  }();
  const cudaDataType_t type = gemm.fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
  cublasLtMatmulDesc_t product;
  Check(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLt product");
  Set(product, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  Set(product, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (gemm.fp8) {
    Set(product, CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
        static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F));
    Set(product, CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
        static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
    Set(product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, gemm.w_scale);
    Set(product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, gemm.x_scale);
  }
  const auto a = Layout(type, gemm.k, gemm.n);
  const auto b = Layout(type, gemm.k, gemm.rows);
  const auto d = Layout(CUDA_R_16BF, gemm.n, gemm.rows);
  cublasLtMatmulPreference_t preference;
  Check(cublasLtMatmulPreferenceCreate(&preference), "cublasLt preference");
  Check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspaceBytes, sizeof(kWorkspaceBytes)),
        "cublasLt workspace");
  cublasLtMatmulHeuristicResult_t choice;
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, product, a, b, d, d, preference, 1, &choice, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) return nullptr;
  return [=] {
    const float one = 1;
    const float zero = 0;
    Check(cublasLtMatmul(handle, product, &one, gemm.w, a, gemm.x, b, &zero, gemm.out, d, gemm.out,
                         d, &choice.algo, workspace, kWorkspaceBytes, nullptr),
          "cublasLtMatmul");
  };
}

}  // namespace epic::kernels::cuda
#else
namespace epic::kernels::cuda {
std::function<void()> MakeLibraryGemm(const LibraryGemm&) { return nullptr; }
}  // namespace epic::kernels::cuda
#endif
