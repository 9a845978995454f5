// Weights of the CPU backend: packed by a GemmFamily into huge pages by all threads.
//
// All threads pack, each its own panels: loading is bound by memory, and a page belongs to the node
// of the thread that touches it first.
//
// A handle's matrices lie in one piece of memory that it owns.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/fma_gemm.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/huge_memory.h"
#include "kernels/gate_choice.h"
#include "kernels/quantize.h"
#include "kernels/threads/thread_pool.h"

namespace epic::kernels {

// Any single matrix; the model's head is one.
struct CpuMatrix : Matrix {
  PackedWeight weight;
  std::unique_ptr<HugeMemory> memory;
};

struct CpuMlp : Mlp {
  PackedWeight gate, up, down;  // gate and up have one shape and type: one pass computes both
  std::unique_ptr<HugeMemory> memory;
};

struct CpuAttention : Attention {
  std::vector<float> input_norm, q_a_norm, kv_a_norm;
  PackedWeight q_a, q, kv_a, o;
  // kv_b is kept in these forms alone.
  std::vector<PackedWeight> w_uk;  // per head: [kv_rank, nope]
  std::vector<PackedWeight> w_uv;  // per head: [v, kv_rank]
  std::vector<PackedWeight> w_k;   // per head: [nope, kv_rank]; empty: all rows attend absorbed
  std::unique_ptr<HugeMemory> memory;
};

// The router is multiplied by family `fma` whatever the backend's family: its logits are FP32.
struct CpuGate : Gate {
  CpuGate(const GateShape& gate_shape, std::span<const float> bias) : chooser(gate_shape, bias) {
    shape = gate_shape;
  }
  GateChooser chooser;
  PackedWeight weight;
  std::unique_ptr<HugeMemory> memory;
};

// Thread-safe: its pool serves one loader at a time.
class WeightLoader {
 public:
  WeightLoader(const GemmFamily& family, const FmaGemmFamily& fma, Quantization quantization,
               PromptAttention prompt_attention, ThreadPool& pool)
      : family_(family),
        fma_(fma),
        quantization_(quantization),
        prompt_attention_(prompt_attention),
        pool_(pool) {}

  std::unique_ptr<CpuMatrix> Load(const SourceMatrix& source) const;
  std::unique_ptr<CpuMlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                                  const SourceMatrix& down) const;
  std::unique_ptr<CpuAttention> LoadAttention(const AttentionSource& source) const;
  std::unique_ptr<CpuGate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                    std::span<const float> correction_bias) const;

 private:
  struct Request {
    SourceMatrix source;
    PackedWeight* to;
    // kv_b's parts say false: they stay BF16 under --quantization.
    bool quantized = true;  // where the options say so
  };

  // Packs all of them into one piece of memory, and says in each request's `to` where it lies.
  std::unique_ptr<HugeMemory> Pack(std::span<const Request> requests) const;

  const GemmFamily& family_;
  const FmaGemmFamily& fma_;
  const Quantization quantization_;
  const PromptAttention prompt_attention_;
  ThreadPool& pool_;
};

}  // namespace epic::kernels
