# SPDX-License-Identifier: Apache-2.0
#
# What `cmake --install` puts where: headers, both libraries, libipc.pc and the CMake package, programs, manual
# pages, shell completion.

include(CMakePackageConfigHelpers)

if(IPC_PLANT)
    install(CODE "message(FATAL_ERROR \"not installed: this build has the planted bug ${IPC_PLANT}\")")
endif()

if(TARGET ipc_shared)
    set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/ipc")
    install(DIRECTORY "${PROJECT_SOURCE_DIR}/libipc/include/ipc" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
            FILES_MATCHING PATTERN "*.h")
    set_target_properties(ipc_shared PROPERTIES EXPORT_NAME ipc)
    install(TARGETS ipc_shared EXPORT ipc-targets
            LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" NAMELINK_COMPONENT Development)
    if(TARGET ipc-pack)
        install(FILES "${PROJECT_BINARY_DIR}/libipc/pack/libipc.a" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
    else()
        install(TARGETS ipc_static ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
    endif()
    install(EXPORT ipc-targets NAMESPACE ipc:: DESTINATION "${package_dir}" FILE ipcTargets.cmake)
    configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/ipcConfig.cmake.in"
        "${PROJECT_BINARY_DIR}/ipcConfig.cmake" INSTALL_DESTINATION "${package_dir}"
        PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
    write_basic_package_version_file("${PROJECT_BINARY_DIR}/ipcConfigVersion.cmake"
        VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
    install(FILES "${PROJECT_BINARY_DIR}/ipcConfig.cmake" "${PROJECT_BINARY_DIR}/ipcConfigVersion.cmake"
            DESTINATION "${package_dir}")
    # The .pc file finds its prefix from where it lies, so that an install tree can be moved.
    cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
               BASE_DIRECTORY "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" OUTPUT_VARIABLE IPC_PC_PREFIX)
    cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_LIBDIR
               BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}" OUTPUT_VARIABLE IPC_PC_LIBDIR)
    cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR
               BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}" OUTPUT_VARIABLE IPC_PC_INCLUDEDIR)
    configure_file("${PROJECT_SOURCE_DIR}/cmake/libipc.pc.in" "${PROJECT_BINARY_DIR}/libipc.pc" @ONLY)
    install(FILES "${PROJECT_BINARY_DIR}/libipc.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
endif()

foreach(program IN ITEMS ipcd ipcd-run ipcd-mq ipcd-zmq)
    if(TARGET ${program})
        install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_SBINDIR}")
    endif()
endforeach()
if(TARGET ipcctl)
    install(TARGETS ipcctl RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()

# docs/man/<name>.<section>.scd
file(GLOB manuals CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/docs/man/*.scd")
if(manuals AND IPC_SCDOC)
    set(pages "")
    file(MAKE_DIRECTORY "${PROJECT_BINARY_DIR}/man")
    foreach(manual IN LISTS manuals)
        cmake_path(GET manual STEM LAST_ONLY page)
        cmake_path(GET page EXTENSION LAST_ONLY section)
        string(SUBSTRING "${section}" 1 -1 section)
        set(output "${PROJECT_BINARY_DIR}/man/${page}")
        add_custom_command(OUTPUT "${output}"
            COMMAND sh -c "exec \"$1\" <\"$2\" >\"$3\"" sh "${IPC_SCDOC}" "${manual}" "${output}"
            DEPENDS "${manual}" COMMENT "Formatting ${page}" VERBATIM)
        list(APPEND pages "${output}")
        install(FILES "${output}" DESTINATION "${CMAKE_INSTALL_MANDIR}/man${section}")
    endforeach()
    add_custom_target(man ALL DEPENDS ${pages})
elseif(manuals)
    message(STATUS "manual pages left out: scdoc is missing")
endif()

if(EXISTS "${PROJECT_SOURCE_DIR}/tools/completion/ipcctl")
    install(FILES "${PROJECT_SOURCE_DIR}/tools/completion/ipcctl"
            DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
endif()

# What must be built before `cmake --install`: all of the above, and none of the tests.
add_custom_target(installed)
foreach(target IN ITEMS ipc_shared ipc_static ipc-pack ipcd ipcd-run ipcd-mq ipcd-zmq ipcctl man)
    if(TARGET ${target})
        add_dependencies(installed ${target})
    endif()
endforeach()
