# What `cmake --install` puts where. In: the targets of CMakeLists.txt. Out: programs, libspa with pkg-config and CMake files, headers, man
# pages, completions.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS spa RUNTIME)
if(SPA_CLOUD)
  install(TARGETS spa-cloud RUNTIME)
endif()
install(FILES README.md ARCHITECTURE.md WIRE.md PLUGIN.md SECURITY.md CHANGELOG.md LICENSE NOTICE TYPE DOC)
install(DIRECTORY deploy/ DESTINATION ${CMAKE_INSTALL_DATADIR}/spa)

# ---- libspa.so: the device's side with the core, the head and ggml-base inside; libspa-core.a: the core alone, for small machines ----
# What the first names of include/spa need is in the list as well: nothing else is promised.
set(PUBLIC_HEADERS device/plugin_file.h device/drafts.h device/link.h device/talk.h
  core/err.h core/dtype.h core/ladder.h core/gate.h core/basis.h core/sample.h core/plugin.h core/wire.h core/owed.h core/session.h
  ${GEN}/spa.pb.h ${NANOPB_INCLUDE}/pb.h)
set_target_properties(spa_device spa_head PROPERTIES POSITION_INDEPENDENT_CODE ON)
add_library(spa_shared SHARED $<TARGET_OBJECTS:spa_core> $<TARGET_OBJECTS:spa_device> $<TARGET_OBJECTS:spa_head>)
target_link_libraries(spa_shared PRIVATE ${NANOPB_LIB} PkgConfig::LWS PkgConfig::JANSSON OpenSSL::SSL OpenSSL::Crypto
  ggml::ggml-base ${CMAKE_DL_LIBS} Threads::Threads m)
# Other people's symbols stay inside.
target_link_options(spa_shared PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/tools/libspa.map -Wl,--no-undefined)
set_target_properties(spa_shared PROPERTIES OUTPUT_NAME spa VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR} LINKER_LANGUAGE CXX
  LINK_DEPENDS ${CMAKE_SOURCE_DIR}/tools/libspa.map)
install(TARGETS spa_shared LIBRARY)
install(FILES $<TARGET_FILE:spa_core> DESTINATION ${CMAKE_INSTALL_LIBDIR} RENAME libspa-core.a)
install(FILES ${PUBLIC_HEADERS} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/spa)

set(PC_DIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH PC_PREFIX /${PC_DIR} /)
string(REGEX REPLACE "/$" "" PC_PREFIX ${PC_PREFIX})
foreach(name spa spa-core)
  configure_file(tools/${name}.pc.in ${CMAKE_BINARY_DIR}/${name}.pc @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/${name}.pc DESTINATION ${PC_DIR})
endforeach()
set(CONFIG_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/spa)
configure_package_config_file(tools/spa-config.cmake.in ${CMAKE_BINARY_DIR}/spa-config.cmake INSTALL_DESTINATION ${CONFIG_DIR}
  PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/spa-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/spa-config.cmake ${CMAKE_BINARY_DIR}/spa-config-version.cmake DESTINATION ${CONFIG_DIR})

# ---- man pages and completions, of the option table: the programs are asked for it, so they must run here ----
if(NOT CMAKE_CROSSCOMPILING)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  string(TIMESTAMP TODAY "%Y-%m-%d" UTC)   # SOURCE_DATE_EPOCH counts, where it is set
  set(PAGES ${CMAKE_BINARY_DIR}/pages)
  set(DESCRIBED spa)
  if(SPA_CLOUD)
    list(APPEND DESCRIBED spa-cloud)
  endif()
  set(DESCRIBED_FILES ${DESCRIBED})
  list(TRANSFORM DESCRIBED_FILES REPLACE "(.+)" "$<TARGET_FILE:\\1>")
  add_custom_command(OUTPUT ${PAGES}/done
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${PAGES}
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tools/pages.py ${PAGES} ${PROJECT_VERSION} ${TODAY} ${DESCRIBED_FILES}
    COMMAND ${CMAKE_COMMAND} -E touch ${PAGES}/done
    DEPENDS ${DESCRIBED} tools/pages.py VERBATIM)
  add_custom_target(pages ALL DEPENDS ${PAGES}/done)
  install(DIRECTORY ${PAGES}/man1/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  install(DIRECTORY ${PAGES}/bash/ DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
  install(DIRECTORY ${PAGES}/zsh/ DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
  install(DIRECTORY ${PAGES}/fish/ DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()
