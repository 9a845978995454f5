#include "kernels/cuda/rows.h"

#include "kernels/cuda/rows_kernel.h"

namespace epic::kernels::cuda {

void RmsNorm(Stream stream, const NormArguments& arguments) {
  Launch<RmsNormKernel>(stream, arguments.rows, arguments);
}

void QuantiseRows(Stream stream, const QuantiseArguments& arguments) {
  Launch<QuantiseKernel>(stream, arguments.rows.groups * arguments.rows.places, arguments);
}

void SwiGlu(Stream stream, const SwiGluArguments& arguments) {
  Launch<SwiGluKernel>(stream, arguments.rows.groups * arguments.rows.places, arguments);
}

void EmbedRows(Stream stream, const EmbedArguments& arguments) {
  Launch<EmbedKernel>(stream, arguments.rows, arguments);
}

void SplitQuery(Stream stream, const QueryArguments& arguments) {
  Launch<QueryKernel>(stream, arguments.rows, arguments);
}

void WriteRecords(Stream stream, const RecordArguments& arguments) {
  Launch<RecordKernel>(stream, arguments.rows, arguments);
}

}  // namespace epic::kernels::cuda
