// Between the control stream's messages and the engine's structs. Values are not checked here:
// Engine::Start does.
#pragma once

#include "proto/epic/v1/worker.pb.h"
#include "worker/engine/engine.h"

namespace epic::worker {

// All but the id.
SequenceRequest RequestFrom(const v1::StartSequence& start);
// All but the names (sequence, attempt).
v1::SequenceToken MessageFrom(const NewToken& token);

}  // namespace epic::worker
