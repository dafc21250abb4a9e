# Tests of the real command. With the plugins inside the program there are none to spoil or add.
if(TARGET apus)
  get_property(pipelines_preloaded GLOBAL PROPERTY APUS_PRELOADED)
  set(pipelines_cases ${CMAKE_BINARY_DIR}/tests/cases)
  set(pipelines_compiler ${CMAKE_C_COMPILER})
  if(pipelines_preloaded)
    set(pipelines_cases)
    set(pipelines_compiler)
  endif()
  add_test(NAME pipelines/bad_input COMMAND ${CMAKE_CURRENT_LIST_DIR}/bad_input.sh $<TARGET_FILE:apus> ${CMAKE_BINARY_DIR}/tmp/bad_input
    ${CMAKE_CURRENT_SOURCE_DIR}/golden ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus ${pipelines_cases})
  add_test(NAME pipelines/command COMMAND ${CMAKE_CURRENT_LIST_DIR}/command.sh $<TARGET_FILE:apus> ${CMAKE_SOURCE_DIR}
    ${CMAKE_BINARY_DIR}/tmp/command ${pipelines_compiler})
  set_tests_properties(pipelines/bad_input PROPERTIES TIMEOUT 600)
endif()
