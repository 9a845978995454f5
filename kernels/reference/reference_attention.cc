#include "kernels/reference/reference_attention.h"

#include <cstring>

#include "kernels/check.h"
#include "kernels/kv_record.h"
#include "kernels/number.h"

namespace epic::kernels {
namespace {

std::byte* RecordAt(const StepPlan& plan, const KvView& kv, int layer, int sequence, int position) {
  const int32_t page = plan.pages[plan.sequences[sequence].first_page + position / kPageTokens];
  // A record beyond the cache would be another sequence's, or anything.
  KERNEL_CHECK(page >= 0 && page < kv.page_count, "page %d of %d", page, kv.page_count);
  return kv.slabs[layer] + page * kv.layout.page_bytes() +
         position % kPageTokens * kv.layout.record_bytes();
}

}  // namespace

Row ReferenceAttentionRunner::Round(Row values) const {
  if (rounded_) {
    for (float& value : values) value = RoundToBF16(value);
  }
  return values;
}

bool ReferenceAttentionRunner::IsExpanded(const StepPlan& plan, int row) const {
  // The position decides and not the role, so that a row which is computed again after a retry
  // attends as it did before.
  return expanded_ && plan.positions[row] < plan.sequences[plan.row_sequence[row]].prompt_length;
}

ReferenceAttentionStep ReferenceAttentionRunner::In(const ReferenceAttention& attention,
                                                    const StepPlan& plan, const RopeTable& rope,
                                                    const KvView& kv, int layer, Tensor residual,
                                                    Tensor query) {
  ReferenceAttentionStep step;
  step.nope.resize(plan.rows());
  step.expanded_values.resize(plan.rows());
  for (int t = 0; t < plan.rows(); ++t) {
    const Row x =
        Round(RmsNorm(residual.Row<float>(t), attention.input_norm, attention.shape.norm_eps));
    // The record comes before any query attends, since every key is read as stored.
    WriteRecord(attention, rope, Multiply(attention.kv_a, x), t, plan, kv, layer);
    shadows_.Store(Query(attention, rope, x, t, step.nope[t]), query.Row<BF16>(t));
  }
  return step;
}

// [W_UKᵀ·q_nope | rotated q_rope] per head, not yet rounded; q_nope of all heads goes to `nope`.
Row ReferenceAttentionRunner::Query(const ReferenceAttention& attention, const RopeTable& rope,
                                    const Row& x, int row, Row& nope) const {
  const AttentionShape& shape = attention.shape;
  Row q;
  if (shape.q_rank > 0) {
    const Row low = Multiply(attention.q_a, x);
    q = Multiply(attention.q, Round(RmsNorm(low.data(), attention.q_a_norm, shape.inner_norm_eps)));
  } else {
    q = Multiply(attention.q, x);
  }
  Row out;
  for (int h = 0; h < shape.heads; ++h) {
    const float* head = q.data() + h * (shape.nope_dim + shape.rope_dim);
    // q_nope is rounded before it meets W_UK: the profile lists it among the rounded rows.
    const Row head_nope = Round(Row(head, head + shape.nope_dim));
    nope.insert(nope.end(), head_nope.begin(), head_nope.end());
    const Row absorbed = Multiply(attention.w_uk[h], head_nope);
    out.insert(out.end(), absorbed.begin(), absorbed.end());
    Row rotated(head + shape.nope_dim, head + shape.nope_dim + shape.rope_dim);
    // The rope part is rounded after its rotation, with the whole query.
    Rotate(rope, row, shape.rope_interleaved, rotated.data());
    out.insert(out.end(), rotated.begin(), rotated.end());
  }
  return out;
}

void ReferenceAttentionRunner::WriteRecord(const ReferenceAttention& attention,
                                           const RopeTable& rope, const Row& latent_and_rope,
                                           int row, const StepPlan& plan, const KvView& kv,
                                           int layer) {
  // The latent is normed, the rope part is not: it is rotated instead.
  const AttentionShape& shape = attention.shape;
  Row record = RmsNorm(latent_and_rope.data(), attention.kv_a_norm, shape.inner_norm_eps);
  record.insert(record.end(), latent_and_rope.begin() + shape.kv_rank, latent_and_rope.end());
  Rotate(rope, row, shape.rope_interleaved, record.data() + shape.kv_rank);
  std::byte* to = RecordAt(plan, kv, layer, plan.row_sequence[row], plan.positions[row]);
  // Padding is written too: a page's bytes must be the same on every device and after every reuse.
  std::memset(to, 0, kv.layout.record_bytes());
  std::vector<BF16> values(record.size());
  for (size_t i = 0; i < record.size(); ++i) values[i] = ToBF16(record[i]);
  WriteLatent(kv.layout, values.data(), to);
  std::memcpy(to + kv.layout.rope_offset_bytes(), values.data() + shape.kv_rank,
              2 * shape.rope_dim);
  // The twin is found by the record's address, and ReadRecord tells whether it is still that
  // record's.
  if (!rounded_) records_[to] = record;
}

// As stored; or its FP32 twin, value by value, where the record still holds what the twin rounds
// to: pages are given to other sequences, whose records were written elsewhere.
Row ReferenceAttentionRunner::ReadRecord(const KvLayout& layout, const std::byte* from) const {
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

void ReferenceAttentionRunner::Attend(ReferenceAttentionStep& step,
                                      const ReferenceAttention& attention, const StepPlan& plan,
                                      const KvView& kv, int layer, Tensor query,
                                      Tensor output) const {
  // Rows of one sequence share them: a key depends on its record and the weights alone.
  ExpandedKeys keys;
  for (int t = 0; t < plan.rows(); ++t) {
    // The twin is found by content, since the caller may have copied the query.
    const Row q = shadows_.Load(query.Row<BF16>(t), query.cols);
    if (IsExpanded(plan, t)) {
      step.expanded_values[t] =
          AttendExpanded(attention, plan, kv, layer, t, step.nope[t], q, keys);
    } else {
      shadows_.Store(AttendAbsorbed(attention, plan, kv, layer, t, q), output.Row<BF16>(t));
    }
  }
}

// A record is the key, its latent the value.
Row ReferenceAttentionRunner::AttendAbsorbed(const ReferenceAttention& attention,
                                             const StepPlan& plan, const KvView& kv, int layer,
                                             int row, const Row& query) const {
  const AttentionShape& shape = attention.shape;
  const int width = shape.kv_rank + shape.rope_dim;
  KeyAndValue record;
  const auto key_at = [&](int position) -> const KeyAndValue& {
    record.key = ReadRecord(kv.layout, RecordAt(plan, kv, layer, plan.row_sequence[row], position));
    // Only the latent is summed: the rope part serves the score alone.
    record.value.assign(record.key.begin(), record.key.begin() + shape.kv_rank);
    return record;
  };
  Row out(int64_t{shape.heads} * shape.kv_rank);
  for (int h = 0; h < shape.heads; ++h) {
    AttendHead(attend_split_, shape.softmax_scale, plan.positions[row] + 1,
               query.data() + h * width, shape.kv_rank, key_at, out.data() + h * shape.kv_rank);
  }
  return out;
}

// The values of all heads; not yet rounded. A head's key is [W_UK·latent | rope], its value
// W_UV·latent.
Row ReferenceAttentionRunner::AttendExpanded(const ReferenceAttention& attention,
                                             const StepPlan& plan, const KvView& kv, int layer,
                                             int row, const Row& nope, const Row& query,
                                             ExpandedKeys& keys) const {
  const AttentionShape& shape = attention.shape;
  const int sequence = plan.row_sequence[row];
  Row out(int64_t{shape.heads} * shape.v_dim);
  for (int h = 0; h < shape.heads; ++h) {
    const float* head = nope.data() + h * shape.nope_dim;
    Row q(head, head + shape.nope_dim);
    const float* rope = query.data() + h * (shape.kv_rank + shape.rope_dim) + shape.kv_rank;
    q.insert(q.end(), rope, rope + shape.rope_dim);
    const auto key_at = [&](int position) -> const KeyAndValue& {
      // Each key is expanded once for all rows that see it. Its bits depend on the record and the
      // weights alone.
      const auto [at, is_new] = keys.try_emplace({sequence, h, position});
      if (is_new) {
        const Row record = ReadRecord(kv.layout, RecordAt(plan, kv, layer, sequence, position));
        at->second.key = Round(Multiply(attention.w_k[h], record));
        // The rope part comes from the record as stored, which is BF16 already.
        at->second.key.insert(at->second.key.end(), record.begin() + shape.kv_rank, record.end());
        at->second.value = Round(Multiply(attention.w_uv[h], record));
      }
      return at->second;
    };
    AttendHead(attend_split_, shape.softmax_scale, plan.positions[row] + 1, q.data(), shape.v_dim,
               key_at, out.data() + h * shape.v_dim);
  }
  return out;
}

void ReferenceAttentionRunner::Out(const ReferenceAttentionStep& step,
                                   const ReferenceAttention& attention, Tensor output,
                                   Tensor residual) const {
  KERNEL_CHECK_EQ(step.expanded_values.size(), static_cast<size_t>(output.rows));
  const AttentionShape& shape = attention.shape;
  for (int64_t t = 0; t < output.rows; ++t) {
    Row values = step.expanded_values[t];
    // Rows that attended absorbed have latents still, which W_UV turns into values.
    if (values.empty()) {
      const Row u = shadows_.Load(output.Row<BF16>(t), output.cols);
      values.resize(int64_t{shape.heads} * shape.v_dim);
      for (int h = 0; h < shape.heads; ++h) {
        attention.w_uv[h].Multiply(u.data() + h * shape.kv_rank, values.data() + h * shape.v_dim);
      }
    }
    // The product is summed in FP32 and added to the residual once.
    const Row y = Multiply(attention.o, Round(values));
    for (int64_t i = 0; i < residual.cols; ++i) residual.Row<float>(t)[i] += y[i];
  }
}

}  // namespace epic::kernels
