# The plugins that test_module.c loads: case.c once per CASE, as case_<name>.so.
set(module_cases good twin later short_vtable null_function default_range default_type default_yaml default_none
  default_required param_no_doc param_twice param_type param_size param_of_kind param_needs kind name no_ops size layout minor license
  empty undefined entry major declines)
add_custom_target(module_cases)
foreach(case ${module_cases})
  string(TOUPPER ${case} define)
  set(name ${case})
  if(case STREQUAL twin)
    set(name good)
  endif()
  add_library(case_${case} MODULE ${CMAKE_CURRENT_LIST_DIR}/plugins/case.c)
  target_link_libraries(case_${case} PRIVATE apus_abi)
  target_compile_definitions(case_${case} PRIVATE CASE_${define} NAME="${name}")
  set_target_properties(case_${case} PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/cases)
  add_dependencies(module_cases case_${case})
endforeach()
add_dependencies(core_module_test_module module_cases)
get_property(preloaded GLOBAL PROPERTY APUS_PRELOADED)
list(LENGTH preloaded n_preloaded)
target_compile_definitions(core_module_test_module PRIVATE
  APUS_TEST_CASES="${CMAKE_BINARY_DIR}/tests/cases" APUS_TEST_BUILT_IN=${n_preloaded})
