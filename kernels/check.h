// KERNEL_CHECK: for what cannot happen unless a caller or this code is wrong. It stays on in every
// build, prints file, line, condition and values to stderr, and aborts. kernels/ builds alone, so
// base/check.h is not for it.
//
//   KERNEL_CHECK(data != nullptr);
//   KERNEL_CHECK(data != MAP_FAILED, "%ld bytes", bytes);   // printf's formats
//   KERNEL_CHECK_LT(page, kv.page_count);                   // prints both values, as integers
//
// Checks stand at seams: where an operation begins, before a launch, where a handle is cast. They
// never stand in an inner loop: their cost must not be measurable.
//
// This header defines no inline function on purpose: sources compiled for one instruction set
// include it, and the linker may keep their copy of an inline function for CPUs that lack that set.
#pragma once

namespace epic::kernels {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const char* format,
                              ...) __attribute__((format(printf, 4, 5)));

}  // namespace epic::kernels

#define KERNEL_CHECK(condition, ...)                 \
  (__builtin_expect(static_cast<bool>(condition), 1) \
       ? static_cast<void>(0)                        \
       : ::epic::kernels::CheckFailed(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__))

#define KERNEL_CHECK_OP(a, op, b)                                                                \
  do {                                                                                           \
    const auto kernel_check_a = (a);                                                             \
    const auto kernel_check_b = (b);                                                             \
    KERNEL_CHECK_NAMED(kernel_check_a op kernel_check_b, #a " " #op " " #b, "%lld against %lld", \
                       static_cast<long long>(kernel_check_a),                                   \
                       static_cast<long long>(kernel_check_b));                                  \
  } while (false)
#define KERNEL_CHECK_NAMED(condition, name, ...)     \
  (__builtin_expect(static_cast<bool>(condition), 1) \
       ? static_cast<void>(0)                        \
       : ::epic::kernels::CheckFailed(__FILE__, __LINE__, name, __VA_ARGS__))

#define KERNEL_CHECK_EQ(a, b) KERNEL_CHECK_OP(a, ==, b)
#define KERNEL_CHECK_LT(a, b) KERNEL_CHECK_OP(a, <, b)
#define KERNEL_CHECK_LE(a, b) KERNEL_CHECK_OP(a, <=, b)
#define KERNEL_CHECK_GT(a, b) KERNEL_CHECK_OP(a, >, b)
#define KERNEL_CHECK_GE(a, b) KERNEL_CHECK_OP(a, >=, b)
