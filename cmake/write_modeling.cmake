file(READ ${INPUT} text)
file(WRITE ${OUTPUT}
  "#include \"infer/hf_files.h\"\n\nnamespace egmla::hf {\n\nconst char* const kModelingText = R\"PYTHON(${text})PYTHON\";\n\n}  // namespace egmla::hf\n")
