#include "kernels/reference/reference_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <unordered_map>

#include "kernels/flush_denormals.h"
#include "kernels/kv_record.h"
#include "kernels/math.h"
#include "kernels/number.h"
#include "kernels/reference/reference_weights.h"
#include "kernels/reference/shadow.h"
#include "kernels/rope_table.h"

namespace epic::kernels {
namespace {

using Row = std::vector<float>;

constexpr int kSplitTokens = 512;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class HeapMemory : public Memory {
 public:
  explicit HeapMemory(int64_t bytes)
      : bytes_(bytes),
        data_(static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 64) / 64 * 64))) {
    if (data_ == nullptr) std::abort();
    std::memset(data_, 0, bytes);
  }
  ~HeapMemory() override { std::free(data_); }
  std::byte* data() override { return data_; }
  int64_t bytes() const override { return bytes_; }

 private:
  int64_t bytes_;
  std::byte* data_;
};

// Σ x² in 16 lanes, then a tree: the order of all norms.
float SumOfSquares(const float* x, int64_t count) {
  float lanes[16] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i % 16] = Fma(x[i], x[i], lanes[i % 16]);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

Row RmsNorm(const float* x, std::span<const float> weight, float eps) {
  const auto count = static_cast<int64_t>(weight.size());
  const float mean = SumOfSquares(x, count) / static_cast<float>(count);
  const float factor = 1.0f / std::sqrt(mean + eps);
  Row y(count);
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * factor * weight[i];
  return y;
}

std::span<const float> Values(Tensor vector) {
  return {vector.As<float>(), static_cast<size_t>(vector.cols)};
}

Row Multiply(const ReferenceMatrix& weight, const Row& x) {
  Row y(weight.rows);
  weight.Multiply(x.data(), y.data());
  return y;
}

void Rotate(const RopeTable& table, int row, bool interleaved, float* x) {
  const int pairs = table.pairs;
  for (int i = 0; i < pairs; ++i) {
    const float c = table.cos[row * pairs + i];
    const float s = table.sin[row * pairs + i];
    float& first = x[interleaved ? 2 * i : i];
    float& second = x[interleaved ? 2 * i + 1 : i + pairs];
    const float rotated = Fma(first, c, -(second * s));
    second = Fma(second, c, first * s);
    first = rotated;
  }
}

// One split's state of one query: running maximum, sum of weights, weighted sum of latents.
struct Partial {
  float maximum = -kInfinity;
  float sum = 0;
  Row values;
};

float Rescale(float from, float to) { return from == to ? 1.0f : Exp(from - to); }

class ReferenceBackend : public Backend {
 public:
  explicit ReferenceBackend(const ReferenceOptions& options)
      : rounded_(options.round_to_bf16),
        quantization_(options.quantization),
        pairs_(options.avx512_bf16),
        fp8_activations_(options.fp8_activations),
        kv_type_(options.kv_type),
        expanded_(options.prompt_attention == PromptAttention::kExpanded),
        shadows_(!options.round_to_bf16) {
    if (!rounded_ && kv_type_ == KvType::kFP8) std::abort();
  }

  std::string profile() const override {
    const std::string form =
        PromptAttentionName(expanded_ ? PromptAttention::kExpanded : PromptAttention::kAbsorbed);
    if (!rounded_) return "epic-numerics-3/reference/w:f32,a:f32,kv:f32/" + form + "/split512";
    return std::string("epic-numerics-3/") + (pairs_ ? "avx512-bf16/" : "fma/") +
           ProfileTypes(quantization_) + ",kv:" + KvTypeName(kv_type_) + "/" + form + "/split512";
  }
  KvType kv_type() const override { return kv_type_; }
  bool attends_slices() const override { return !expanded_; }
  std::string description() const override { return "reference, 1 thread"; }

  std::unique_ptr<Memory> Allocate(int64_t bytes, MemoryUse use) override {
    return std::make_unique<HeapMemory>(bytes);
  }

  std::unique_ptr<Matrix> LoadMatrix(const SourceMatrix& source) override {
    return std::make_unique<ReferenceMatrix>(MakeMatrix(source));
  }

  std::unique_ptr<Mlp> LoadMlp(const SourceMatrix& gate, const SourceMatrix& up,
                               const SourceMatrix& down) override {
    auto mlp = std::make_unique<ReferenceMlp>();
    mlp->gate = MakeMatrix(gate);
    mlp->up = MakeMatrix(up);
    mlp->down = MakeMatrix(down);
    mlp->hidden = gate.cols;
    mlp->intermediate = gate.rows;
    mlp->packed_bytes = mlp->gate.packed_bytes + mlp->up.packed_bytes + mlp->down.packed_bytes;
    return mlp;
  }

  std::unique_ptr<Attention> LoadAttention(const AttentionSource& source) override {
    const AttentionShape& shape = source.shape;
    auto attention = std::make_unique<ReferenceAttention>();
    attention->shape = shape;
    attention->input_norm.assign(source.input_norm.begin(), source.input_norm.end());
    attention->kv_a_norm.assign(source.kv_a_norm.begin(), source.kv_a_norm.end());
    if (shape.q_rank > 0) {
      attention->q_a_norm.assign(source.q_a_norm.begin(), source.q_a_norm.end());
      attention->q_a = MakeMatrix(source.q_a);
    }
    attention->q = MakeMatrix(source.q);
    attention->kv_a = MakeMatrix(source.kv_a);
    attention->o = MakeMatrix(source.o);
    for (int h = 0; h < shape.heads; ++h) {
      const int64_t row = h * int64_t{shape.nope_dim + shape.v_dim};
      attention->w_uk.push_back(SliceKvB(source.kv_b, row, shape.nope_dim, true, rounded_));
      attention->w_uv.push_back(
          SliceKvB(source.kv_b, row + shape.nope_dim, shape.v_dim, false, rounded_));
      attention->w_k.push_back(SliceKvB(source.kv_b, row, shape.nope_dim, false, rounded_));
      attention->w_uk.back().odd_first = pairs_;
      attention->w_uv.back().odd_first = pairs_;
      attention->w_k.back().odd_first = pairs_;
    }
    attention->packed_bytes = attention->q_a.packed_bytes + attention->q.packed_bytes +
                              attention->kv_a.packed_bytes + attention->o.packed_bytes;
    return attention;
  }

  std::unique_ptr<Gate> LoadGate(const GateShape& shape, const SourceMatrix& weight,
                                 std::span<const float> correction_bias) override {
    auto gate = std::make_unique<ReferenceGate>(shape, correction_bias);
    gate->weight = MakeReferenceF32Matrix(weight);
    return gate;
  }

  void BeginStep(const StepPlan& plan, const Rope& rope) override {
    shadows_.Clear();
    rope_.Fill(plan, rope);
  }

  void Embed(const StepPlan& plan, const SourceMatrix& table, Tensor residual) override {
    for (int t = 0; t < plan.rows(); ++t) {
      ReadSource(table, plan.token_ids[t], 0, table.cols, residual.Row<float>(t));
    }
  }

  void AttentionIn(const Attention& base, const StepPlan& plan, const KvView& kv, int layer,
                   Tensor residual, Tensor query) override {
    const ScopedFlushDenormals flush;
    const auto& attention = static_cast<const ReferenceAttention&>(base);
    nope_.assign(plan.rows(), {});
    for (int t = 0; t < plan.rows(); ++t) {
      const Row x =
          Round(RmsNorm(residual.Row<float>(t), attention.input_norm, attention.shape.norm_eps));
      WriteRecord(attention, Multiply(attention.kv_a, x), t, plan, kv, layer);
      shadows_.Store(Query(attention, x, t), query.Row<BF16>(t));
    }
  }

  void Attend(const Attention& base, const StepPlan& plan, const KvView& kv, int layer,
              Tensor query, Tensor output) override {
    const ScopedFlushDenormals flush;
    const auto& attention = static_cast<const ReferenceAttention&>(base);
    const AttentionShape& shape = base.shape;
    const int width = shape.kv_rank + shape.rope_dim;
    expanded_values_.assign(plan.rows(), {});
    ExpandedKeys keys;
    for (int t = 0; t < plan.rows(); ++t) {
      const Row q = shadows_.Load(query.Row<BF16>(t), query.cols);
      if (IsExpanded(plan, t)) {
        expanded_values_[t] = AttendExpanded(attention, plan, kv, layer, t, q, keys);
        continue;
      }
      Row out(output.cols);
      for (int h = 0; h < shape.heads; ++h) {
        const auto record = [&](int position) {
          Row key = ReadRecord(kv.layout, Record(plan, kv, layer, plan.row_sequence[t], position));
          Row value(key.begin(), key.begin() + shape.kv_rank);
          return Expanded{std::move(key), std::move(value)};
        };
        AttendHead(shape.softmax_scale, plan.positions[t] + 1, q.data() + h * width, shape.kv_rank,
                   record, out.data() + h * shape.kv_rank);
      }
      shadows_.Store(out, output.Row<BF16>(t));
    }
  }

  void AttentionOut(const Attention& base, Tensor output, Tensor residual) override {
    const ScopedFlushDenormals flush;
    const auto& attention = static_cast<const ReferenceAttention&>(base);
    const AttentionShape& shape = attention.shape;
    for (int64_t t = 0; t < output.rows; ++t) {
      Row values = expanded_values_[t];
      if (values.empty()) {
        const Row u = shadows_.Load(output.Row<BF16>(t), output.cols);
        values.resize(int64_t{shape.heads} * shape.v_dim);
        for (int h = 0; h < shape.heads; ++h) {
          attention.w_uv[h].Multiply(u.data() + h * shape.kv_rank, values.data() + h * shape.v_dim);
        }
      }
      const Row y = Multiply(attention.o, Round(values));
      for (int64_t i = 0; i < residual.cols; ++i) residual.Row<float>(t)[i] += y[i];
    }
  }

  void Norm(Tensor weight, float eps, Tensor residual, Tensor rows) override {
    const ScopedFlushDenormals flush;
    for (int64_t t = 0; t < residual.rows; ++t) {
      shadows_.Store(RmsNorm(residual.Row<float>(t), Values(weight), eps), rows.Row<BF16>(t));
    }
  }

  void ChooseExperts(const Gate& base, const GateResult& result) override {
    const ScopedFlushDenormals flush;
    const auto& gate = static_cast<const ReferenceGate&>(base);
    for (int64_t t = 0; t < result.rows.rows; ++t) {
      const Row logits =
          Multiply(gate.weight, shadows_.Load(result.rows.Row<BF16>(t), result.rows.cols));
      const bool sound = gate.chooser.Choose(logits.data(), result.experts.Row<int32_t>(t),
                                             result.weights.Row<float>(t));
      *result.faults.Row<uint8_t>(t) = sound ? 0 : 1;
    }
  }

  void Experts(std::span<const Mlp* const> experts, Tensor rows, std::span<const ExpertRow> pairs,
               Tensor out) override {
    const ScopedFlushDenormals flush;
    for (size_t i = 0; i < pairs.size(); ++i) {
      Apply(*experts[pairs[i].expert], rows, pairs[i].row, out, static_cast<int64_t>(i));
    }
  }

  void ApplyMlp(const Mlp& mlp, Tensor rows, Tensor out) override {
    const ScopedFlushDenormals flush;
    for (int64_t t = 0; t < rows.rows; ++t) Apply(mlp, rows, t, out, t);
  }

  void Combine(Tensor shared, Tensor expert_rows, Tensor weights, Tensor residual) override {
    const ScopedFlushDenormals flush;
    for (int64_t t = 0; t < residual.rows; ++t) {
      Row sum(residual.cols);
      if (shared.data != nullptr) sum = shadows_.Load(shared.Row<BF16>(t), shared.cols);
      for (int64_t j = 0; j < weights.cols; ++j) {
        const Row y = shadows_.Load(expert_rows.Row<BF16>(t * weights.cols + j), expert_rows.cols);
        const float weight = weights.Row<float>(t)[j];
        for (int64_t i = 0; i < residual.cols; ++i) sum[i] = Fma(weight, y[i], sum[i]);
      }
      for (int64_t i = 0; i < residual.cols; ++i) residual.Row<float>(t)[i] += sum[i];
    }
  }

  void Head(Tensor norm, float eps, const Matrix& head, const StepPlan& plan, Tensor residual,
            Tensor logits) override {
    const ScopedFlushDenormals flush;
    for (size_t i = 0; i < plan.logit_rows.size(); ++i) {
      const Row x = Round(RmsNorm(residual.Row<float>(plan.logit_rows[i]), Values(norm), eps));
      static_cast<const ReferenceMatrix&>(head).Multiply(x.data(), logits.Row<float>(i));
    }
  }

 private:
  // What a key is to a query: the absorbed form's record and latent, or a head's own key and value.
  struct Expanded {
    Row key;
    Row value;
  };
  // By (sequence, head, position), in one layer of one step.
  using ExpandedKeys = std::map<std::tuple<int, int, int>, Expanded>;

  bool IsExpanded(const StepPlan& plan, int t) const {
    return expanded_ && plan.positions[t] < plan.sequences[plan.row_sequence[t]].prompt_length;
  }

  ReferenceMatrix MakeMatrix(const SourceMatrix& source) const {
    if (!rounded_) return MakeReferenceF32Matrix(source);
    ReferenceMatrix matrix = MakeReferenceMatrix(source, quantization_);
    matrix.odd_first = pairs_;
    matrix.quantised_rows = fp8_activations_ && !matrix.scales.empty();
    return matrix;
  }

  Row Round(Row values) const {
    if (rounded_) {
      for (float& value : values) value = RoundToBF16(value);
    }
    return values;
  }

  // [W_UKᵀ·q_nope | rotated q_rope] per head; not yet rounded.
  Row Query(const ReferenceAttention& attention, const Row& x, int t) {
    const AttentionShape& shape = attention.shape;
    Row q;
    if (shape.q_rank > 0) {
      const Row low = Multiply(attention.q_a, x);
      q = Multiply(attention.q,
                   Round(RmsNorm(low.data(), attention.q_a_norm, shape.inner_norm_eps)));
    } else {
      q = Multiply(attention.q, x);
    }
    Row out;
    for (int h = 0; h < shape.heads; ++h) {
      const float* head = q.data() + h * (shape.nope_dim + shape.rope_dim);
      const Row nope = Round(Row(head, head + shape.nope_dim));
      nope_[t].insert(nope_[t].end(), nope.begin(), nope.end());
      const Row absorbed = Multiply(attention.w_uk[h], nope);
      out.insert(out.end(), absorbed.begin(), absorbed.end());
      Row rope(head + shape.nope_dim, head + shape.nope_dim + shape.rope_dim);
      Rotate(rope_, t, shape.rope_interleaved, rope.data());
      out.insert(out.end(), rope.begin(), rope.end());
    }
    return out;
  }

  void WriteRecord(const ReferenceAttention& attention, const Row& latent_and_rope, int t,
                   const StepPlan& plan, const KvView& kv, int layer) {
    const AttentionShape& shape = attention.shape;
    Row record = RmsNorm(latent_and_rope.data(), attention.kv_a_norm, shape.inner_norm_eps);
    record.insert(record.end(), latent_and_rope.begin() + shape.kv_rank, latent_and_rope.end());
    Rotate(rope_, t, shape.rope_interleaved, record.data() + shape.kv_rank);
    std::byte* to = Record(plan, kv, layer, plan.row_sequence[t], plan.positions[t]);
    std::memset(to, 0, kv.layout.record_bytes());
    std::vector<BF16> values(record.size());
    for (size_t i = 0; i < record.size(); ++i) values[i] = ToBF16(record[i]);
    WriteLatent(kv.layout, values.data(), to);
    std::memcpy(to + kv.layout.rope_offset_bytes(), values.data() + shape.kv_rank,
                2 * shape.rope_dim);
    if (!rounded_) records_[to] = record;
  }

  static std::byte* Record(const StepPlan& plan, const KvView& kv, int layer, int sequence,
                           int position) {
    const int32_t page = plan.pages[plan.sequences[sequence].first_page + position / kPageTokens];
    return kv.slabs[layer] + page * kv.layout.page_bytes() +
           position % kPageTokens * kv.layout.record_bytes();
  }

  Row ReadRecord(const KvLayout& layout, const std::byte* from) const {
    Row record(layout.latent_dim + layout.rope_dim);
    const auto twin = records_.find(from);
    for (size_t i = 0; i < record.size(); ++i) {
      const int index = static_cast<int>(i);
      const float stored = index < layout.latent_dim
                               ? ReadLatent(layout, from, index)
                               : ToFloat(LoadUnaligned<BF16>(from + layout.rope_offset_bytes(),
                                                             index - layout.latent_dim));
      const bool current =
          twin != records_.end() && ToBF16(twin->second[i]).bits == ToBF16(stored).bits;
      record[i] = current ? twin->second[i] : stored;
    }
    return record;
  }

  // The values of all heads; not yet rounded.
  Row AttendExpanded(const ReferenceAttention& attention, const StepPlan& plan, const KvView& kv,
                     int layer, int t, const Row& query, ExpandedKeys& keys) const {
    const AttentionShape& shape = attention.shape;
    const int sequence = plan.row_sequence[t];
    Row out(int64_t{shape.heads} * shape.v_dim);
    for (int h = 0; h < shape.heads; ++h) {
      const float* nope = nope_[t].data() + h * shape.nope_dim;
      Row q(nope, nope + shape.nope_dim);
      const float* rope = query.data() + h * (shape.kv_rank + shape.rope_dim) + shape.kv_rank;
      q.insert(q.end(), rope, rope + shape.rope_dim);
      const auto expanded = [&](int position) -> const Expanded& {
        const auto [at, is_new] = keys.try_emplace({sequence, h, position});
        if (is_new) {
          const Row record = ReadRecord(kv.layout, Record(plan, kv, layer, sequence, position));
          at->second.key = Round(Multiply(attention.w_k[h], record));
          at->second.key.insert(at->second.key.end(), record.begin() + shape.kv_rank, record.end());
          at->second.value = Round(Multiply(attention.w_uv[h], record));
        }
        return at->second;
      };
      AttendHead(shape.softmax_scale, plan.positions[t] + 1, q.data(), shape.v_dim, expanded,
                 out.data() + h * shape.v_dim);
    }
    return out;
  }

  // key_at(position) → Expanded.
  template <class KeyAt>
  void AttendHead(float scale, int keys, const float* q, int value_dim, const KeyAt& key_at,
                  float* out) const {
    Partial total;
    for (int begin = 0; begin < keys; begin += kSplitTokens) {
      Partial split;
      split.values.resize(value_dim);
      const int end = std::min(keys, begin + kSplitTokens);
      const int step = pairs_ ? kSplitTokens : kPageTokens;  // keys that share a maximum
      for (int block = begin; block < end; block += step) {
        AddBlock(scale, q, block, std::min(end, block + step), key_at, split);
      }
      if (begin == 0) {
        total = split;
      } else {
        Merge(split, total);
      }
    }
    const float factor = 1.0f / total.sum;
    for (int i = 0; i < value_dim; ++i) out[i] = Fma(total.values[i], factor, 0.0f);  // no −0
  }

  // body(i) for [0, count) in the order in which products are added.
  template <class Body>
  void InOrder(size_t count, const Body& body) const {
    for (size_t i = 0; i < (pairs_ ? (count + 1) / 2 * 2 : count); ++i) {
      const size_t at = pairs_ ? i ^ 1 : i;
      if (at < count) body(at);
    }
  }

  template <class KeyAt>
  void AddBlock(float scale, const float* q, int begin, int end, const KeyAt& key_at,
                Partial& split) const {
    std::vector<Expanded> keys;
    Row scores;
    float maximum = split.maximum;
    for (int position = begin; position < end; ++position) {
      keys.push_back(key_at(position));
      float score = 0;
      InOrder(keys.back().key.size(),
              [&](size_t i) { score = Fma(q[i], keys.back().key[i], score); });
      score *= scale;
      scores.push_back(score);
      maximum = score > maximum ? score : maximum;
    }
    const float correction = Rescale(split.maximum, maximum);
    split.maximum = maximum;
    split.sum *= correction;
    for (float& value : split.values) value *= correction;
    for (float& score : scores) {
      score = Exp(score - maximum);
      if (pairs_) score = RoundToBF16(score);
      split.sum += score;
    }
    InOrder(scores.size(), [&](size_t j) {
      for (size_t i = 0; i < split.values.size(); ++i) {
        split.values[i] = Fma(scores[j], keys[j].value[i], split.values[i]);
      }
    });
  }

  static void Merge(const Partial& split, Partial& total) {
    const float maximum = split.maximum > total.maximum ? split.maximum : total.maximum;
    const float a = Rescale(total.maximum, maximum);
    const float b = Rescale(split.maximum, maximum);
    total.maximum = maximum;
    total.sum = Fma(total.sum, a, split.sum * b);
    for (size_t i = 0; i < total.values.size(); ++i) {
      total.values[i] = Fma(total.values[i], a, split.values[i] * b);
    }
  }

  void Apply(const Mlp& base, Tensor rows, int64_t from, Tensor out, int64_t to) {
    const auto& mlp = static_cast<const ReferenceMlp&>(base);
    const Row x = shadows_.Load(rows.Row<BF16>(from), rows.cols);
    Row product = Multiply(mlp.gate, x);
    const Row up = Multiply(mlp.up, x);
    for (size_t i = 0; i < product.size(); ++i) product[i] = Silu(product[i]) * up[i];
    shadows_.Store(Multiply(mlp.down, Round(product)), out.Row<BF16>(to));
  }

  bool rounded_;
  Quantization quantization_;
  bool pairs_;  // family avx512-bf16
  bool fp8_activations_;
  KvType kv_type_;
  bool expanded_;
  ShadowRows shadows_;
  std::vector<Row> nope_;             // [T] q_nope of all heads, from AttentionIn to Attend
  std::vector<Row> expanded_values_;  // [T] from Attend to AttentionOut; empty: absorbed
  RopeTable rope_;
  std::unordered_map<const std::byte*, Row> records_;
};

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend(const ReferenceOptions& options) {
  return std::make_unique<ReferenceBackend>(options);
}

}  // namespace epic::kernels
