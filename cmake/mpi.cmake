# epic_mpi_test(name SRCS … DEPS …): one program of GoogleTest, run as four processes under mpirun. Where MPI is not
# found the test is there, and skipped by name. Any user may run it, and more ranks than there are cores.
function(epic_mpi_test name)
  if(NOT EPIC_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  if(NOT EPIC_MPI)
    add_test(NAME ${name} COMMAND ${CMAKE_COMMAND} -E echo "skipped: MPI is not found")
    set_tests_properties(${name} PROPERTIES LABELS unit SKIP_REGULAR_EXPRESSION "^skipped:")
    return()
  endif()
  add_executable(${name} ${ARG_SRCS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/test)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} epic_mpi_world)
  epic_mpirun_test(${name} $<TARGET_FILE:${name}>)
  if(NOT TARGET unit-tests-unit)
    add_custom_target(unit-tests-unit)
  endif()
  add_dependencies(unit-tests-unit ${name})
endfunction()

# epic_mpirun_test(name COMMAND…): what four processes under mpirun run.
function(epic_mpirun_test name)
  add_test(NAME ${name} COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 4 ${ARGN}
    WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  # OpenMPI keeps what it once allocated.
  set_tests_properties(${name} PROPERTIES LABELS unit TIMEOUT 600 PROCESSORS 2 ENVIRONMENT
    "OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1;OMPI_MCA_rmaps_base_oversubscribe=1;OMPI_MCA_hwloc_base_binding_policy=none;OMPI_MCA_mpi_yield_when_idle=1;ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0")
endfunction()
