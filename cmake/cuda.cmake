# -DEPIC_CUDA=ON: enables the CUDA language with an installed toolkit (nvcc in PATH or in
# /usr/local/cuda), else with the folder that tools/cuda/fetch.sh laid out. Code is for sm_90a.
find_program(EPIC_NVCC nvcc PATHS /usr/local/cuda/bin)
if(NOT EPIC_NVCC)
  execute_process(COMMAND ${EPIC_SOURCE_DIR}/tools/cuda/fetch.sh --cached
                  OUTPUT_VARIABLE EPIC_CUDA_FOLDER OUTPUT_STRIP_TRAILING_WHITESPACE
                  RESULT_VARIABLE status ERROR_QUIET)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "EPIC_CUDA=ON needs a CUDA toolkit: none is installed, and tools/cuda/fetch.sh has not fetched one")
  endif()
  set(EPIC_NVCC ${EPIC_CUDA_FOLDER}/bin/nvcc CACHE FILEPATH "The CUDA compiler" FORCE)
endif()
get_filename_component(EPIC_CUDA_ROOT ${EPIC_NVCC} REALPATH)
get_filename_component(EPIC_CUDA_ROOT ${EPIC_CUDA_ROOT}/../.. ABSOLUTE)
message(STATUS "CUDA compiler: ${EPIC_NVCC}")

find_program(CCACHE ccache)
# Beside each object lies a log of what ptxas made of its kernels.
set(CMAKE_CUDA_COMPILER_LAUNCHER ${EPIC_SOURCE_DIR}/tools/cuda/keep_log.sh)
if(CCACHE)
  list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
set(CMAKE_CUDA_COMPILER ${EPIC_NVCC})
set(CMAKE_CUDA_ARCHITECTURES 90a-real)
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc can
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# As on the host: nothing is contracted, denormals are zero, division and root are exact.
set(EPIC_CUDA_FLAGS -fmad=false -ftz=true -prec-div=true -prec-sqrt=true -lineinfo
    --expt-relaxed-constexpr -Xptxas=-v -diag-suppress=20012)
