// The worker's end of the control stream over gRPC: dials, and redials for as long as it lives.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/env.h"
#include "cluster/control_link.h"
#include "cluster/join_token.h"

namespace epic::cluster {

// `address`: host:port or unix:/path, resolved anew for each dial; between dials lie 50–500 ms,
// jittered. `hello` says who dials: generation, build id and identity; the rest is filled in. With
// a `token` both sides prove that they have it; without one a coordinator that wants it refuses.
// Returns at once: what is sent waits for a connection. Handlers are called on env.loop's thread,
// where the link is used and destroyed too. on_down: Aborted if another coordinator answered (a new
// term) or this generation is out of the world: dial as a new one; FailedPrecondition, with the
// reason, if this worker is not wanted or the token is another one: no use to dial again.
std::unique_ptr<ControlLink> DialControl(Env env, const std::string& address,
                                         v1::ControlHello hello, ControlLinkHandlers handlers,
                                         std::optional<JoinToken> token = std::nullopt);

}  // namespace epic::cluster
