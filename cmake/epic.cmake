# The root of the sources, also where kernels/ is built alone.
get_filename_component(EPIC_SOURCE_DIR ${CMAKE_CURRENT_LIST_DIR}/.. ABSOLUTE)

# epic_library(name SRCS … HDRS … DEPS …): one concept, as target epic_<name>. Without SRCS it is header-only.
function(epic_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;HDRS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(epic_${name} STATIC ${ARG_SRCS} ${ARG_HDRS})
    target_include_directories(epic_${name} PUBLIC ${EPIC_SOURCE_DIR})
    target_link_libraries(epic_${name} PUBLIC ${ARG_DEPS})
    epic_link_test(${name})
  else()
    add_library(epic_${name} INTERFACE)
    target_include_directories(epic_${name} INTERFACE ${EPIC_SOURCE_DIR})
    target_link_libraries(epic_${name} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# Links all of a library with the dependencies that it declares and nothing else: a use of anything that it does not
# declare is an undefined symbol. Target link-tests builds those of all libraries.
function(epic_link_test name)
  if(NOT EPIC_TESTS OR CMAKE_CURRENT_SOURCE_DIR MATCHES "/testing$")  # some of those have a main
    return()
  endif()
  add_executable(link_${name} EXCLUDE_FROM_ALL ${EPIC_SOURCE_DIR}/cmake/link_test.cc)
  set_target_properties(link_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/link)
  target_link_libraries(link_${name} PRIVATE $<LINK_LIBRARY:WHOLE_ARCHIVE,epic_${name}>)
  if(NOT TARGET link-tests)
    add_custom_target(link-tests)
  endif()
  add_dependencies(link-tests link_${name})
endfunction()

# epic_test(name SRCS … DEPS … [LABELS …]): one GoogleTest program, run by ctest from the repository's root.
# Label `threads` marks the tests that the thread sanitizer should see.
function(epic_test name)
  epic_plain_test(${name} ${ARGN})
  if(EPIC_TESTS)
    target_link_libraries(${name} PRIVATE GTest::gmock GTest::gtest_main)
  endif()
endfunction()

# The same with a main of its own. Exit status 77: skipped.
function(epic_plain_test name)
  if(NOT EPIC_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/test)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  if(EPIC_SANITIZE MATCHES thread)
    target_sources(${name} PRIVATE ${EPIC_SOURCE_DIR}/cmake/tsan_absl_mutex.cc)
    target_link_libraries(${name} PRIVATE absl::synchronization ${CMAKE_DL_LIBS})
  endif()
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${EPIC_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "unit;${ARG_LABELS}" TIMEOUT 600 SKIP_RETURN_CODE 77)
  foreach(label unit ${ARG_LABELS})
    if(NOT TARGET unit-tests-${label})
      add_custom_target(unit-tests-${label})
    endif()
    add_dependencies(unit-tests-${label} ${name})
  endforeach()
endfunction()
