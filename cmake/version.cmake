# Writes generated/core/version.h at every build, so that `egmla --version` names the commit it was built from.
add_custom_target(egmla_version
  COMMAND ${CMAKE_COMMAND} -DSOURCE_DIR=${CMAKE_SOURCE_DIR} -DOUTPUT=${CMAKE_BINARY_DIR}/generated/core/version.h
          -DVERSION=${PROJECT_VERSION} -P ${CMAKE_SOURCE_DIR}/cmake/write_version.cmake
  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/core/version.h VERBATIM)
add_dependencies(egmla_core egmla_version)
