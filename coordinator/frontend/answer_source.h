// The two AnswerSources of a generation.
#pragma once

#include <memory>

#include "coordinator/frontend/generation.h"
#include "coordinator/frontend/http_api.h"
#include "coordinator/frontend/openai_request.h"

namespace epic::coordinator {

// The source streams if `request.stream` says so. `context` outlives it.
std::unique_ptr<AnswerSource> NewAnswerSource(const FrontendContext& context, OpenAiRequest request,
                                              std::unique_ptr<Generation> generation);

}  // namespace epic::coordinator
