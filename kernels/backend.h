// Backend: the operations that a device offers to model/. Each operation is one sub-layer on a
// whole batch. model/ never asks which device it is.
//
//   backend.BeginStep(plan, rope);
//   backend.Embed(plan, table, residual);
//   // for each layer:
//   backend.AttentionIn(attention, plan, kv, layer, residual, query);
//   backend.Attend(attention, plan, kv, layer, query, output);
//   backend.AttentionOut(attention, output, residual);
//   backend.Norm(weight, eps, residual, rows);
//   backend.ApplyMlp(dense, rows, out);   // or: ChooseExperts, Wait, Experts and ApplyMlp
//   backend.Combine(out, answers, weights, residual);
//   // at the end:
//   backend.Head(norm, eps, head, plan, residual, logits);
//   backend.Wait();
//
// Row purity (docs/architecture.md): what an operation writes for a row depends only on that row's
// inputs, on the weights and on profile(). It never depends on the other rows, their number, or the
// number of threads.
//
// Roundings: the residual is FP32. Normed rows, q, latent, rope part, attention output, SiLU
// product and expert output are rounded once to BF16. Norms, softmax and gate are FP32.
//
// Order: operations run in the order of their calls, each perhaps later than its call; Wait returns
// when all have ended. Host code reads what an operation wrote only after Wait, and writes what an
// operation reads before the call. What an operation refers to (weights, plans, tensors) lives
// until it has ended.
//
// Threads: one Backend serves one thread at a time; the loading functions are thread-safe.
//
// Errors: an operation has none. Shapes, types and indices are the caller's duty, and a wrong one
// is a bug: backends check them where an operation begins (KERNEL_CHECK, which aborts).
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

// Which host code touches a Memory, so that a device can choose where the memory lies. On a CPU all
// are the same.
enum class MemoryUse : uint8_t {
  // Device memory. Host code never touches it, except through Write and Zero.
  kOperations,
  // Rows that may travel to other ranks: device memory that host code may also access.
  kTraffic,
  // Host memory that device operations access over the bus (pinned). Host code reads it every step.
  kHost,
};

// Memory that the backend's operations can address: 64-byte aligned, zeroed, freed with the object.
class Memory {
 public:
  virtual ~Memory() = default;
  virtual std::byte* data() = 0;
  virtual int64_t bytes() const = 0;
};

// A weight matrix [rows, cols], packed as the device wants it. Immutable. Like the other handles
// below it must be given back only to operations of the backend that loaded it.
class Matrix {
 public:
  virtual ~Matrix() = default;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t packed_bytes = 0;  // of device memory; likewise below
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

// How the rows of prompts attend (docs/numerics.md); all other rows attend absorbed.
enum class PromptAttention : uint8_t { kAbsorbed, kExpanded };
// The word for it in the numeric profile.
constexpr const char* PromptAttentionName(PromptAttention form) {
  return form == PromptAttention::kExpanded ? "expanded" : "absorbed";
}

// One layer's multi-head latent attention (MLA). Built by Backend::LoadAttention.
class Attention {
 public:
  virtual ~Attention() = default;
  AttentionShape shape;
  int64_t packed_bytes = 0;
};

// One layer's weights as the checkpoint has them. Norm weights are FP32.
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

// Rotary frequencies, shared by all layers. Pair i of a row at position p is rotated by the angle
// p · inverse_frequency[i]; cos and sin are multiplied by `magnitude` (YaRN's; else 1).
struct Rope {
  std::vector<double> inverse_frequency;  // [rope_dim / 2]
  double magnitude = 1;
};

// The router's choice, as the DeepSeek-V2 and V3 papers define it (kernels/gate_choice.h).
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

// What the gate decides for each of T rows.
struct GateResult {
  Tensor rows;     // BF16 [T, hidden]: normed residual, input of experts and shared expert
  Tensor experts;  // I32 [T, top_k]: ids, ascending within a row
  Tensor weights;  // F32 [T, top_k]: of the expert in the same place
  // U8 [T, 1]: 1 where the logits held a NaN. Such a row goes to experts 0 .. top_k−1 with weights
  // 0, and its request must end with an error.
  Tensor faults;
};

// One (row, expert) product to compute, for Backend::Experts.
struct ExpertRow {
  int32_t row = 0;     // index into `rows`
  int32_t expert = 0;  // index into `experts`
};

class Backend {
 public:
  virtual ~Backend() = default;

  // Names all that fixes bits: numerics version, family, activation and KV types, attention form
  // (kernels/numerics.h).
  virtual std::string profile() const = 0;
  // How this backend's KV records hold a latent. Every KvLayout that it is given must have this
  // type.
  virtual KvType kv_type() const { return KvType::kBF16; }
  // For people: CPU or GPU, family, threads.
  virtual std::string description() const = 0;

  // Whether a step's attention can be computed some rows at a time: see Attend.
  virtual bool attends_slices() const { return false; }
  // Threads of the host that compute in ForEach, and on a CPU in operations too.
  virtual int compute_threads() const { return 1; }

  // Long operations call `interlude` on the thread that called them, about every 50 ms or more
  // often, so that a rank can report progress. The interlude must not call the backend, nor free
  // what the operation reads. A backend whose operations do not occupy the caller never calls it.
  virtual void SetInterlude(std::function<void()> interlude) {}

  // Returns when all earlier operations have ended. From then on host code may read what they wrote
  // and overwrite what they read.
  virtual void Wait() {}
  // Runs task(0) .. task(count − 1) on the host's compute threads, in any order and several at a
  // time, with denormals flushed, and returns when all have returned. Tasks must not call the
  // backend.
  virtual void ForEach(int count, const std::function<void(int)>& task) {
    const ScopedFlushDenormals flush;
    for (int i = 0; i < count; ++i) task(i);
  }
  // Operations on any Memory of this backend. `from` is ordinary host memory, read within the call.
  virtual void Write(std::byte* to, const void* from, int64_t bytes) {
    std::memcpy(to, from, bytes);
  }
  virtual void Zero(std::byte* at, int64_t bytes) { std::memset(at, 0, bytes); }

  // Loading. The source is read within the call and may be released after it. Thread-safe. The
  // objects must be destroyed before the backend, and not while an operation reads them.
  virtual std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) = 0;
  virtual std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) = 0;
  virtual std::unique_ptr<Mlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                                       const SourceMatrix& down) = 0;
  virtual std::unique_ptr<Attention> LoadAttention(const AttentionSource& source) = 0;
  virtual std::unique_ptr<Gate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                         std::span<const float> correction_bias) = 0;

  // How many rows the tensors of a step must have if its plan has `rows`: as many, or more. Rows
  // past the plan's fill the tensors up; their values mean nothing and reach no other row. Logits
  // have only the rows of the plan.
  virtual int StepRows(int rows) const { return rows; }

  // Begins a step. `plan` and `rope` stay unchanged until the step's last operation has ended.
  virtual void BeginStep(const StepPlan& plan, const Rope& rope) = 0;

  // residual F32 [T, hidden] ← the tokens' rows of `table`: BF16 or F32 [vocab, hidden], kept by
  // the caller in memory of this backend.
  virtual void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) = 0;

  // Norm, projections, rope; writes the rows' KV records into `kv` at `layer`, and
  // query BF16 [T, heads·(kv_rank + rope_dim)]: per head [W_UKᵀ·q_nope | rotated q_rope].
  virtual void AttentionIn(const Attention& attention, const StepPlan& plan, const KvView& kv,
                           int layer, Tensor residual, Tensor query) = 0;
  // output BF16 [T, heads·kv_rank]: Σ softmax(scale·query·record)·latent over the records 0 ..
  // position of the row's sequence, as stored. Splits of 512 keys, merged in order.
  // Where attends_slices() is true, `plan` may be a slice of the step's plan, with those rows of
  // the tensors.
  // Attend does not write the part of `output` of rows that attend expanded: the backend itself
  // keeps what they need from AttentionIn to AttentionOut of a layer. So the three operations of a
  // layer must not be mixed with those of another layer or step.
  virtual void Attend(const Attention& attention, const StepPlan& plan, const KvView& kv, int layer,
                      Tensor query, Tensor output) = 0;
  // residual += o_proj(concat of W_UV·output per head).
  virtual void AttentionOut(const Attention& attention, Tensor output, Tensor residual) = 0;

  // rows BF16 [T, hidden] ← RMSNorm(residual)·weight F32 [1, hidden].
  virtual void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) = 0;
  // Reads result.rows (normed) and fills the rest of it. Logits in FP32, ties to the lowest id.
  virtual void ChooseExperts(const Gate& gate, const GateResult& result) = 0;
  // out BF16 [pairs.size(), hidden]: row i ← expert pairs[i].expert applied to rows[pairs[i].row].
  // experts[e] may be null if no pair names it. `pairs` may come in any order. `rows` and `out` may
  // lie in any memory of the process, this backend's or not. If `out` is not this backend's, or is
  // of kHost, it is written when the call returns.
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
