#include "base/failpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/log.h"

namespace epic {
namespace {

constexpr const char* kNames[] = {
    "dispatch-sent", "dispatch-received", "experts-computed", "combine-sent",  "combine-received",
    "expert-loaded", "map-taken",         "sequence-started", "step-computed", "step-reported"};
static_assert(std::size(kNames) == static_cast<size_t>(Failpoint::kStepReported) + 1);

int signal_number = 0;
std::atomic<int> passes_left = 0;
// Never freed: a thread may pass a failpoint while the process ends.
std::string* once_file = nullptr;

}  // namespace

std::span<const char* const> FailpointNames() { return kNames; }

absl::Status ArmFailpoint(const std::string& text, const std::string& once_path) {
  if (text.empty()) return absl::OkStatus();
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, ':');
  const std::pair<absl::string_view, absl::string_view> how = absl::StrSplit(parts.second, '@');
  const auto* name = std::ranges::find(kNames, parts.first);
  int passes = 0;
  if (name == std::end(kNames)) {
    return absl::InvalidArgumentError(
        absl::StrCat("EPIC_FAILPOINT: ", parts.first, " is none of ", absl::StrJoin(kNames, ", ")));
  }
  if ((how.first != "kill" && how.first != "stop") || !absl::SimpleAtoi(how.second, &passes) ||
      passes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("EPIC_FAILPOINT: ", parts.second, " is not kill@N or stop@N, N from 1"));
  }
  signal_number = how.first == "kill" ? SIGKILL : SIGSTOP;
  passes_left = passes;
  once_file = once_path.empty() ? nullptr : new std::string(once_path);
  // Last, since Pass looks at this one alone.
  internal::armed_failpoint = static_cast<int>(name - std::begin(kNames));
  return absl::OkStatus();
}

namespace internal {

std::atomic<int> armed_failpoint = -1;

void HitFailpoint() {
  if (--passes_left > 0) return;
  // Disarmed before the signal, so that a process that was stopped and is continued does not stop
  // again.
  armed_failpoint = -1;
  if (once_file != nullptr) {
    // Only one process can create the file: it is the one that fails.
    const int file = open(once_file->c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
    if (file < 0) return;
    close(file);
  }
  LOG_WARNING("a failpoint sends this process signal {}", signal_number);
  kill(getpid(), signal_number);
}

}  // namespace internal
}  // namespace epic
