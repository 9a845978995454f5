// RunWorker: one rank of this process, from its flags to its end.
#pragma once

#include "absl/status/status.h"
#include "base/env.h"
#include "base/epoll_loop.h"
#include "worker/options.h"

namespace epic::worker {

// Plans, loads, joins the coordinator's world and serves until the rank is told to end and has
// drained; with --dry-run it prints the plan of its memory and returns. `env.loop` is `loop`, which
// the calling thread runs here. `signals`: a signalfd, each of whose signals tells the rank to end.
// Errors name the flag, the file or what the coordinator says.
absl::Status RunWorker(const WorkerOptions& options, EpollLoop& loop, Env env, int signals);

}  // namespace epic::worker
