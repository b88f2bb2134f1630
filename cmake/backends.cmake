# Which back ends are built; src/core/backends.h.in becomes the one generated header that names them.
set(EGMLA_WITH_CUDA OFF)
if(NOT EGMLA_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(EGMLA_WITH_CUDA ON)
    add_library(egmla_cuda_dependencies INTERFACE)
    target_link_libraries(egmla_cuda_dependencies INTERFACE CUDA::cudart CUDA::cublasLt)
    # CMake 3.25 knows no C++20 for nvcc, hence the plain flag. fmt 9 turns its constexpr off under nvcc, and then its
    # checked format strings do not compile.
    target_compile_options(egmla_flags INTERFACE
      $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr --use_fast_math -DFMT_USE_CONSTEXPR=1 -Werror all-warnings -Xcompiler=-Wall,-Wextra>
      $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Xcompiler=-Wno-restrict,-Wno-array-bounds,-Wno-stringop-overflow,-Wno-stringop-overread>)
  elseif(EGMLA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "EGMLA_CUDA=ON but no CUDA compiler was found; install the CUDA toolkit (nvcc) or configure with -DEGMLA_CUDA=OFF")
  else()
    message(STATUS "No CUDA compiler: building the CPU back end only")
  endif()
endif()
configure_file(${CMAKE_SOURCE_DIR}/src/core/backends.h.in ${CMAKE_BINARY_DIR}/generated/core/backends.h)
