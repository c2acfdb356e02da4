# SPDX-License-Identifier: Apache-2.0
#
# Every switch of the build, in one place. CMakePresets.json sets them for each kind of build.

option(IPC_WERROR "Treat compiler warnings as errors" ${PROJECT_IS_TOP_LEVEL})
option(IPC_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(IPC_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(IPC_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(IPC_FUZZ "Build the fuzz targets with libFuzzer (clang only)" OFF)
option(IPC_COVERAGE "Instrument for gcov (gcc only)" OFF)
option(IPC_FILTER "Tests run ipcd and the gateways below the system call filters of their units (./dev filter)" OFF)
option(IPC_LTO "Link-time optimisation" OFF)
set(IPC_SANITIZE "" CACHE STRING "Value of -fsanitize= for the whole tree, e.g. address,undefined or thread")
set(IPC_PLANT "" CACHE STRING "Name of a bug to plant, to see a test catch it; becomes IPC_PLANT_<NAME>=1")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Kind of build" FORCE)
endif()

# A planted bug must never reach an installed program.
if(IPC_PLANT)
    if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" OR NOT IPC_TESTS)
        message(FATAL_ERROR "IPC_PLANT=${IPC_PLANT}: only in a Debug build with IPC_TESTS=ON "
                            "(presets dev, clang, asan, tsan, coverage)")
    endif()
    if(NOT IPC_PLANT MATCHES "^[A-Za-z][A-Za-z0-9_-]*$")
        message(FATAL_ERROR "IPC_PLANT=${IPC_PLANT}: a name of letters, digits, '_' and '-' is expected")
    endif()
endif()
