// Backend: the operations that a device offers to model/. Each is one sub-layer on a whole batch;
// they run in order on a stream (at once on a CPU), and the graph never asks which.
//
// Row purity (docs/architecture.md): what an operation writes for a row depends only on that row's
// inputs, on the weights and on profile(), never on the other rows, their number, or the thread
// count.
//
// Roundings: the residual is FP32. Normed rows, q, latent, rope part, attention output, SiLU
// product and expert output are rounded once to BF16. Norms, softmax and gate are FP32.
//
// Operations may run later than their call, in order: Wait ends them. What host code reads of them
// it reads after Wait; what it writes for them is there before the call.
//
// One Backend serves one thread at a time. Shapes are the caller's duty: a wrong one is a bug
// (abort).
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/flush_denormals.h"
#include "kernels/kv_view.h"
#include "kernels/step_plan.h"
#include "kernels/tensor.h"

namespace epic::kernels {

// Who touches a Memory beside the backend's operations. On a CPU all are the same.
enum class MemoryUse : uint8_t {
  kOperations,  // nobody
  kTraffic,     // host code where rows travel: it lies with the operations until then
  kHost,        // host code, in every step: operations reach for it
};

// Memory that the backend's operations can address; 64-byte aligned, zeroed. Freed with the object.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual std::byte* data() = 0;
  virtual int64_t bytes() const = 0;
};

// A weight matrix [rows, cols] packed as the device likes. Immutable.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t packed_bytes = 0;
};

// A gated MLP: down(silu(gate(x)) ⊙ up(x)): an expert, the shared expert, or a dense layer.
class Mlp {
 public:
  virtual ~Mlp() = default;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t packed_bytes = 0;
};

struct AttentionShape {
  int hidden = 0;
  int heads = 0;
  int q_rank = 0;  // q_lora_rank; 0: a plain q projection
  int kv_rank = 0;
  int nope_dim = 0;
  int rope_dim = 0;
  int v_dim = 0;
  float norm_eps = 0;        // of input_layernorm
  float inner_norm_eps = 0;  // of q_a_layernorm and kv_a_layernorm
  float softmax_scale = 0;   // with YaRN's mscale² where it applies
  bool rope_interleaved = true;
};

// How the rows of prompts attend (docs/numerics.md); all others attend absorbed.
enum class PromptAttention : uint8_t { kAbsorbed, kExpanded };
// As in the numeric profile.
constexpr const char* PromptAttentionName(PromptAttention form) {
  return form == PromptAttention::kExpanded ? "expanded" : "absorbed";
}

// One layer's MLA. Norm weights are FP32 [n]. Built by Backend::LoadAttention.
class Attention {
 public:
  virtual ~Attention() = default;
  AttentionShape shape;
  int64_t packed_bytes = 0;
};

struct AttentionSource {
  AttentionShape shape;
  std::span<const float> input_norm;  // [hidden]
  SourceMatrix q_a;                   // [q_rank, hidden] if q_rank > 0
  std::span<const float> q_a_norm;    // [q_rank] if q_rank > 0
  SourceMatrix q;                    // q_b [heads·(nope+rope), q_rank], or q_proj with cols hidden
  SourceMatrix kv_a;                 // [kv_rank + rope, hidden]
  std::span<const float> kv_a_norm;  // [kv_rank]
  SourceMatrix kv_b;                 // [heads·(nope+v), kv_rank]
  SourceMatrix o;                    // [hidden, heads·v]
};

// Rotary frequencies, shared by all layers. cos and sin are multiplied by `magnitude`.
struct Rope {
  std::vector<double> inverse_frequency;  // [rope_dim / 2]
  double magnitude = 1;
};

enum class GateScore : uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : uint8_t { kNone, kMax, kTopTwoSum };

struct GateShape {
  int experts = 0;
  int top_k = 0;
  GateScore score = GateScore::kSoftmax;
  // kMax: group_limited_greedy, masked scores become 0. kTopTwoSum: noaux_tc, masked become −inf.
  GroupScore group_score = GroupScore::kNone;
  int groups = 1;
  int kept_groups = 1;
  bool normalise = false;  // w ← w / (Σw + 1e-20) before scaling
  float scaling = 1;
};

// The router: [experts, hidden] in FP32, and the correction bias [experts] (empty: none).
class Gate {
 public:
  virtual ~Gate() = default;
  GateShape shape;
  int64_t packed_bytes = 0;
};

// What the gate decides for each row. Ids ascend within a row, weights follow their ids.
struct GateResult {
  Tensor rows;     // BF16 [T, hidden]: normed residual, input of experts and shared expert
  Tensor experts;  // I32 [T, top_k]
  Tensor weights;  // F32 [T, top_k]
  Tensor faults;   // U8 [T, 1]: 1 where the logits held a NaN; such a row goes to experts 0..k-1
};

// One (row, expert) product to compute.
struct ExpertRow {
  int32_t row = 0;     // of the rows given
  int32_t expert = 0;  // index into the experts given
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Names all that fixes bits: numerics version, family, activation and KV types, attention form.
  virtual std::string profile() const = 0;
  // How its KV records hold a latent: the type of every layout that it is given.
  virtual KvType kv_type() const { return KvType::kBF16; }
  // For people: CPU or GPU, family, threads.
  virtual std::string description() const = 0;

  // Whether a step's attention can be computed some rows at a time: see Attend.
  virtual bool attends_slices() const { return false; }

  // Operations that take long call `interlude` now and then on the thread that called them, at
  // least every 50 ms or so, so that a rank can say that it is at work. It calls nothing of the
  // backend, and frees nothing that the operation reads. A device that computes on its own need
  // not.
  virtual void SetInterlude(std::function<void()> interlude) {}

  // Host code may read what earlier operations wrote, and write what they read.
  virtual void Wait() {}
  // Runs task(0) .. task(count − 1) on the host's compute threads, in any order and several at a
  // time, with denormals flushed, and returns when all have returned. They use no operation.
  virtual void ForEach(int count, const std::function<void(int)>& task) {
    const ScopedFlushDenormals flush;
    for (int i = 0; i < count; ++i) task(i);
  }
  // As operations, on any Memory: `from` is of the host and is read within the call.
  virtual void Write(std::byte* to, const void* from, int64_t bytes) {
    std::memcpy(to, from, bytes);
  }
  virtual void Zero(std::byte* at, int64_t bytes) { std::memset(at, 0, bytes); }

  // Loading. The source is read within the call and may be released after it. Thread-safe.
  virtual std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) = 0;
  virtual std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) = 0;
  virtual std::unique_ptr<Mlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                                       const SourceMatrix& down) = 0;
  virtual std::unique_ptr<Attention> LoadAttention(const AttentionSource& source) = 0;
  virtual std::unique_ptr<Gate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                         std::span<const float> correction_bias) = 0;

  // How many rows the tensors of a step have whose plan has `rows`: as many, or more, which no
  // operation reads for others and whose values mean nothing. Logits have those of the plan.
  virtual int StepRows(int rows) const { return rows; }

  // A step: BeginStep, then per layer AttentionIn, Attend, AttentionOut and the layer's MLP, then
  // Head. `plan` and what Rope holds stay unchanged until the step's last operation.
  virtual void BeginStep(const StepPlan& plan, const Rope& rope) = 0;

  // residual F32 [T, hidden] ← the tokens' rows of `table` (a SourceMatrix kept by the caller in
  // backend-readable memory, BF16 or F32 [vocab, hidden]).
  virtual void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) = 0;

  // Norm, projections, rope; writes the rows' KV records into `kv` at `layer`, and
  // query BF16 [T, heads·(kv_rank + rope_dim)]: per head [W_UKᵀ·q_nope | rotated q_rope].
  virtual void AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv,
                           int layer, Tensor residual, Tensor query) = 0;
  // output BF16 [T, heads·kv_rank]: Σ softmax(scale·query·record)·latent over the records 0 ..
  // position of the row's sequence, as stored. Splits of 512 keys, merged in order.
  // Where attends_slices() is true, `plan` may be a slice of the step's plan, with those rows of
  // the tensors.
  // Rows that attend expanded leave their part of `output` as it is: from AttentionIn to
  // AttentionOut of a layer the backend keeps what it needs of them.
  virtual void Attend(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
                      Tensor query, Tensor output) = 0;
  // residual += o_proj(concat of W_UV·output per head).
  virtual void AttentionOut(const Attention& attention, Tensor output, Tensor residual) = 0;

  // rows BF16 [T, hidden] ← RMSNorm(residual)·weight F32 [1, hidden].
  virtual void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) = 0;
  // Reads result.rows (normed) and fills the rest of it. Logits in FP32, ties to the lowest id.
  virtual void ChooseExperts(const Gate& gate, const GateResult& result) = 0;
  // out BF16 [pairs.size(), hidden]: expert pairs[i].expert applied to rows[pairs[i].row].
  // experts[e] may be null where no pair names it. `pairs` may come in any order. `rows` and `out`
  // may lie in any memory of the process; an `out` there, or in kHost, is written on return.
  virtual void Experts(std::span<const Mlp* const> experts, Tensor rows,
                       std::span<const ExpertRow> pairs, Tensor out) = 0;
  // out BF16 [T, hidden] ← mlp(rows).
  virtual void ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out) = 0;
  // residual += shared + Σⱼ weights[t,j]·expert_rows[t·k+j]: FP32, shared first (a null data
  // pointer: none), then j ascending, then one add into the residual.
  virtual void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) = 0;
  // logits F32 [plan.logit_rows.size(), vocab] ← head(RMSNorm(residual)) of the wanted rows.
  virtual void Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan,
                    Tensor residual, Tensor logits) = 0;
};

}  // namespace epic::kernels
