# Flags shared by every target; warnings are errors.
add_library(egmla_flags INTERFACE)
target_compile_options(egmla_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Werror -fno-math-errno -fno-trapping-math>)
# False positives of g++ 12 and 13 on std::string, std::array and std::optional under -O3.
target_compile_options(egmla_flags INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict -Wno-array-bounds -Wno-maybe-uninitialized -Wno-stringop-overflow -Wno-stringop-overread>)
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  target_compile_options(egmla_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-O3>)
endif()
if(EGMLA_NATIVE)
  target_compile_options(egmla_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()
if(EGMLA_SANITIZE)
  target_compile_options(egmla_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${EGMLA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1>)
  target_link_options(egmla_flags INTERFACE -fsanitize=${EGMLA_SANITIZE})
endif()

find_program(EGMLA_CCACHE ccache)
if(EGMLA_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${EGMLA_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${EGMLA_CCACHE})
endif()
