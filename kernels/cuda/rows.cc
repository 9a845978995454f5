#include "kernels/cuda/rows.h"

#include "kernels/check.h"
#include "kernels/cuda/rows_kernel.h"

namespace epic::kernels::cuda {
namespace {

// Codes and scales come together, and the stride must leave room for the scales of all rows.
void CheckOutputs(const RowOutputs& out, int rows) {
  KERNEL_CHECK(out.rounded != nullptr || out.codes != nullptr);
  KERNEL_CHECK_EQ(out.codes != nullptr, out.scales != nullptr);
  KERNEL_CHECK(out.codes == nullptr || out.scale_stride >= rows, "stride %d of %d rows",
               out.scale_stride, rows);
}

}  // namespace

void RmsNorm(Stream stream, const NormArguments& arguments) {
  KERNEL_CHECK(arguments.x != nullptr && arguments.weight != nullptr);
  KERNEL_CHECK_GE(arguments.x_stride, arguments.columns);
  CheckOutputs(arguments.out, arguments.rows);
  Launch<RmsNormKernel>(stream, arguments.rows, arguments);
}

void QuantiseRows(Stream stream, const QuantiseArguments& arguments) {
  KERNEL_CHECK(arguments.x != nullptr);
  CheckOutputs(arguments.out, arguments.rows.places);
  Launch<QuantiseKernel>(stream, arguments.rows.groups * arguments.rows.places, arguments);
}

void SwiGlu(Stream stream, const SwiGluArguments& arguments) {
  KERNEL_CHECK(arguments.gate_up != nullptr);
  // Up may begin past gate's end (in FP8 at the next block of 128 rows of weights), never inside of
  // it.
  KERNEL_CHECK(arguments.up_offset == 0 || arguments.up_offset >= arguments.columns, "%d of %d",
               arguments.up_offset, arguments.columns);
  CheckOutputs(arguments.out, arguments.rows.places);
  Launch<SwiGluKernel>(stream, arguments.rows.groups * arguments.rows.places, arguments);
}

void EmbedRows(Stream stream, const EmbedArguments& arguments) {
  KERNEL_CHECK(arguments.table != nullptr && arguments.token_ids != nullptr);
  KERNEL_CHECK(arguments.residual != nullptr);
  Launch<EmbedKernel>(stream, arguments.rows, arguments);
}

void SplitQuery(Stream stream, const QueryArguments& arguments) {
  KERNEL_CHECK(arguments.nope != nullptr && arguments.query != nullptr);
  KERNEL_CHECK_GE(arguments.q_stride, arguments.heads * (arguments.nope_dim + arguments.rope_dim));
  // Rope turns pairs.
  KERNEL_CHECK_EQ(arguments.rope_dim % 2, 0);
  Launch<QueryKernel>(stream, arguments.rows, arguments);
}

void WriteRecords(Stream stream, const RecordArguments& arguments) {
  KERNEL_CHECK(arguments.slab != nullptr && arguments.record_index != nullptr);
  // A row may be part of a wider one: kv_a's product shares its rows with q_a's.
  KERNEL_CHECK_GE(arguments.kv_stride, arguments.layout.latent_dim + arguments.layout.rope_dim);
  Launch<RecordKernel>(stream, arguments.rows, arguments);
}

}  // namespace epic::kernels::cuda
