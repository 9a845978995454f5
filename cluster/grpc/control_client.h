// The worker's end of the control stream over gRPC: dials, and redials for as long as it lives.
#pragma once

#include <memory>
#include <string>

#include "base/env.h"
#include "cluster/control_link.h"

namespace epic::cluster {

// `address`: host:port or unix:/path, resolved anew for each dial; between dials lie 50–500 ms,
// jittered. `hello` says who dials: generation and build id; its protocol version is filled in.
// Returns at once: what is sent waits for a connection. Handlers are called on env.loop's thread,
// where the link is used and destroyed too. on_down: another coordinator answered (a new term), or
// it refused this build.
std::unique_ptr<ControlLink> DialControl(Env env, const std::string& address,
                                         v1::ControlHello hello, ControlLinkHandlers handlers);

}  // namespace epic::cluster
