# The modeling file of exports as a C++ string in the library, so that the binary needs no file beside it.
set(EGMLA_MODELING ${CMAKE_BINARY_DIR}/generated/infer/modeling_egmla.cpp)
add_custom_command(OUTPUT ${EGMLA_MODELING}
  COMMAND ${CMAKE_COMMAND} -DINPUT=${CMAKE_SOURCE_DIR}/src/infer/modeling_egmla.py -DOUTPUT=${EGMLA_MODELING}
          -P ${CMAKE_SOURCE_DIR}/cmake/write_modeling.cmake
  DEPENDS ${CMAKE_SOURCE_DIR}/src/infer/modeling_egmla.py ${CMAKE_SOURCE_DIR}/cmake/write_modeling.cmake VERBATIM)
target_sources(egmla_core PRIVATE ${EGMLA_MODELING})
