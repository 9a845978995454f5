#include "coordinator/term.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace epic::coordinator {
namespace {

absl::StatusOr<uint64_t> LastTerm(Storage& storage, const std::string& path) {
  const absl::StatusOr<std::string> text = storage.Read(path, 0);
  if (absl::IsNotFound(text.status())) return 0;
  RETURN_IF_ERROR(text.status());
  uint64_t term = 0;
  // It is replaced as a whole, so what is no number was written by something else. To start from 1
  // again would give a term of an earlier life.
  if (!absl::SimpleAtoi(*text, &term) || term == 0 || term == UINT64_MAX) {
    return absl::DataLossError(
        absl::StrCat(path, " should hold the number of the coordinator's last life, and does not: "
                           "write there a higher one than any before, or remove --state-dir's "
                           "folder when all workers have ended"));
  }
  return term;
}

}  // namespace

uint64_t TermOfClock(absl::Time now) {
  const int64_t microseconds = absl::ToUnixMicros(now);
  CHECK_GT(microseconds, 0) << "the clock is before 1970";
  return static_cast<uint64_t>(microseconds);
}

absl::StatusOr<uint64_t> NextTerm(Storage& storage, const std::string& state_dir) {
  CHECK(!state_dir.empty());
  const std::string path = absl::StrCat(state_dir, "/TERM");
  ASSIGN_OR_RETURN(const uint64_t last, LastTerm(storage, path));
  const uint64_t term = last + 1;
  // The term is stored before anybody may use it. A crash behind this wastes a number; the other
  // order could use one twice.
  RETURN_IF_ERROR(ReplaceFile(storage, path, absl::StrCat(term, "\n")));
  return term;
}

}  // namespace epic::coordinator
