// Bugs by name, for the simulator (tests/sim) to find: they test the tests. Only builds of it carry
// them, one of them at a time, named by the environment's EPIC_MUTANT.
//
//   if (!EPIC_MUTANT("answers_give_no_credit")) AddCredits(peer, 1);
#pragma once

#ifdef EPIC_SIM
#include <string_view>
namespace epic {
bool Mutant(std::string_view name);
}
#define EPIC_MUTANT(name) ::epic::Mutant(name)
#else
#define EPIC_MUTANT(name) false
#endif
