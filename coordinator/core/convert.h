// Between the core's types and the control stream's messages.
#pragma once

#include <string>

#include "coordinator/request.h"
#include "proto/epic/v1/worker.pb.h"

namespace epic::coordinator {

JournalToken TokenFrom(const v1::SequenceToken& message);
// What is the same for every attempt of a choice.
v1::StartSequence StartFrom(const Request& request, int choice);
// "epic-" and 16 hexadecimal digits: equal profile and checkpoint give equal answers.
std::string Fingerprint(const std::string& profile, const std::string& checkpoint);

}  // namespace epic::coordinator
