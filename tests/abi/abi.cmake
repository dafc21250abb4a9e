# The contract's own checks: headers that compile alone, and the README's example, built against abi/ and nothing else.
find_program(APUS_CXX NAMES c++ g++ clang++)
add_test(NAME abi/headers COMMAND ${CMAKE_COMMAND} -DABI=${CMAKE_SOURCE_DIR}/abi -DCC=${CMAKE_C_COMPILER}
  -DCXX=$<$<BOOL:${APUS_CXX}>:${APUS_CXX}> -DTMP=${CMAKE_BINARY_DIR}/tmp -P ${CMAKE_CURRENT_LIST_DIR}/headers.cmake)

add_library(example_focal MODULE ${CMAKE_CURRENT_LIST_DIR}/example/focal.c)
target_link_libraries(example_focal PRIVATE apus_abi)
set_target_properties(example_focal PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/example)
add_custom_command(TARGET example_focal POST_BUILD
  COMMAND chmod go-w $<TARGET_FILE_DIR:example_focal> $<TARGET_FILE:example_focal> VERBATIM)
add_dependencies(abi_test_example example_focal)
target_compile_definitions(abi_test_example PRIVATE
  APUS_TEST_EXAMPLE="${CMAKE_BINARY_DIR}/tests/example/example_focal.so"
  APUS_TEST_SOURCE="${CMAKE_SOURCE_DIR}")
