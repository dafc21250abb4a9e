# How plugins, tests and the installed packages are built. Each plugin folder's CMakeLists.txt is one call of apus_plugin.

# apus_plugin(KIND NAME SOURCES … [LIBS …] [OPTIONS …]): one shared object, plugins/KIND/NAME -> apus_KIND_NAME.so in
# build/plugins. LIBS are what it alone links; it sees abi/ and nothing else of the house.
function(apus_plugin kind name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS;OPTIONS" ${ARGN})
  set(target apus_${kind}_${name})
  if(APUS_STATIC)
    add_library(${target} STATIC ${arg_SOURCES})
    target_compile_definitions(${target} PRIVATE apus_plugin_v1=${target}_LTX_apus_plugin_v1)
    set_property(GLOBAL APPEND PROPERTY APUS_PRELOADED ${target})
  else()
    add_library(${target} MODULE ${arg_SOURCES})
    set_target_properties(${target} PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/plugins)
    if(NOT APUS_SANITIZE)
      target_link_options(${target} PRIVATE -Wl,-z,defs)
    endif()
    target_link_options(${target} PRIVATE -Wl,-z,now)
    # The host refuses what others may write, which a umask of 002 would allow.
    add_custom_command(TARGET ${target} POST_BUILD
      COMMAND chmod go-w $<TARGET_FILE_DIR:${target}> $<TARGET_FILE:${target}> VERBATIM)
    install(TARGETS ${target} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/apus/1)
  endif()
  target_link_libraries(${target} PRIVATE apus_abi ${arg_LIBS} m)
  target_compile_options(${target} PRIVATE ${arg_OPTIONS})
  set_property(GLOBAL APPEND PROPERTY APUS_PLUGINS ${target})
endfunction()

function(apus_add_plugins)
  file(GLOB folders CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/plugins/*/*/CMakeLists.txt)
  foreach(file ${folders})
    get_filename_component(folder ${file} DIRECTORY)
    add_subdirectory(${folder})
  endforeach()
endfunction()

# With APUS_STATIC: the table of preloaded plugins that core/module hands to libltdl.
function(apus_preload target)
  get_property(plugins GLOBAL PROPERTY APUS_PRELOADED)
  set(PROGRAM "@PROGRAM@") # libltdl's name for the program itself, which must come through file(CONFIGURE)
  set(externs "")
  set(rows "")
  foreach(p ${plugins})
    string(APPEND externs "extern const void *${p}_LTX_apus_plugin_v1(const void *);\n")
    string(APPEND rows "    {\"${p}.a\", NULL}, {\"${p}_LTX_apus_plugin_v1\", (void *)${p}_LTX_apus_plugin_v1},\n")
  endforeach()
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/preload_${target}.c CONTENT
"/* Generated: the plugins linked into this program. */
#include <stddef.h>
@externs@
struct apus_preload_symbol { const char *name; void *address; };
extern const struct apus_preload_symbol apus_preloaded[];
const struct apus_preload_symbol apus_preloaded[] = {
    {\"@PROGRAM@\", NULL},
@rows@    {NULL, NULL}};
" @ONLY)
  target_sources(${target} PRIVATE ${CMAKE_BINARY_DIR}/preload_${target}.c)
  set_source_files_properties(${CMAKE_BINARY_DIR}/preload_${target}.c PROPERTIES COMPILE_OPTIONS "-Wno-pedantic")
  target_link_libraries(${target} PRIVATE ${plugins})
endfunction()

# find_package(apus) and pkg-config for plugin authors: the headers alone.
function(apus_install_packages)
  include(CMakePackageConfigHelpers)
  install(TARGETS apus_abi EXPORT apus)
  install(EXPORT apus NAMESPACE apus:: FILE apusTargets.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/apus)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/apusConfig.cmake CONTENT
"include(\"\${CMAKE_CURRENT_LIST_DIR}/apusTargets.cmake\")
get_filename_component(apus_PLUGIN_DIR \"\${CMAKE_CURRENT_LIST_DIR}/../../apus/1\" ABSOLUTE)
" @ONLY)
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/apusConfigVersion.cmake COMPATIBILITY SameMajorVersion)
  install(FILES ${CMAKE_BINARY_DIR}/apusConfig.cmake ${CMAKE_BINARY_DIR}/apusConfigVersion.cmake
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/apus)
  file(RELATIVE_PATH prefix_from_pc ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX}) # it may be moved
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/apus.pc CONTENT
"prefix=\${pcfiledir}/@prefix_from_pc@
includedir=\${prefix}/@CMAKE_INSTALL_INCLUDEDIR@
plugindir=\${prefix}/@CMAKE_INSTALL_LIBDIR@/apus/1

Name: apus
Description: plugin interface of apus
Version: @PROJECT_VERSION@
Cflags: -I\${includedir}
" @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/apus.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()
