# SPDX-License-Identifier: Apache-2.0
#
# Language, optimisation, sanitizers, hardening. Asserts on our own state stay on in every build: nothing here
# or in a preset defines NDEBUG, and a build that gets it from outside is refused.

include(CheckCCompilerFlag)
set(CMAKE_REQUIRED_QUIET ON)

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
include(CheckPIESupported)
check_pie_supported(LANGUAGES C)

# CMake's own values for these carry -DNDEBUG.
set(CMAKE_C_FLAGS_DEBUG "-O1 -g")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g")
set(CMAKE_C_FLAGS_RELEASE "-O2")
set(CMAKE_C_FLAGS_MINSIZEREL "-Os")
if("${CMAKE_C_FLAGS} $ENV{CFLAGS}" MATCHES "NDEBUG")
    message(FATAL_ERROR "NDEBUG is set in the C flags: asserts stay on in every build of this project")
endif()

find_program(IPC_CCACHE ccache)
mark_as_advanced(IPC_CCACHE)
if(IPC_CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER)
    set(CMAKE_C_COMPILER_LAUNCHER "${IPC_CCACHE}")
endif()

add_compile_options(
    -fno-omit-frame-pointer # stack traces of a running broker, cheaply
    -fno-strict-aliasing    # bytes of a segment are read as the struct that the layout says
)

if(IPC_LTO)
    include(CheckIPOSupported)
    check_ipo_supported(LANGUAGES C)
    set(CMAKE_INTERPROCEDURAL_OPTIMIZATION ON)
endif()

set(ipc_sanitize "${IPC_SANITIZE}")
if(IPC_FUZZ)
    if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
        message(FATAL_ERROR "IPC_FUZZ=ON needs clang (libFuzzer): use the preset 'fuzz'")
    endif()
    string(JOIN "," ipc_sanitize fuzzer-no-link ${ipc_sanitize})
endif()
if(ipc_sanitize)
    add_compile_options(-fsanitize=${ipc_sanitize})
    add_link_options(-fsanitize=${ipc_sanitize})
    if(ipc_sanitize MATCHES "undefined")
        add_compile_options(-fno-sanitize-recover=undefined) # a finding ends the test
    endif()
    if(ipc_sanitize MATCHES "thread")
        add_compile_definitions(IPC_TSAN=1)
    endif()
endif()

if(IPC_COVERAGE)
    add_compile_options(--coverage -O0 -fprofile-update=atomic)
    add_link_options(--coverage)
    check_c_compiler_flag(-fprofile-abs-path IPC_HAS_PROFILE_ABS_PATH)
    if(IPC_HAS_PROFILE_ABS_PATH)
        add_compile_options(-fprofile-abs-path)
    endif()
endif()

if(NOT ipc_sanitize AND NOT IPC_COVERAGE)
    foreach(flag IN ITEMS
            -fstack-protector-strong    # an overrun of a local array ends the process
            -fstack-clash-protection    # a large frame cannot jump over the guard page
            -fcf-protection)            # indirect branches land on marked targets (x86)
        string(MAKE_C_IDENTIFIER "IPC_HAS${flag}" known)
        check_c_compiler_flag("-Werror ${flag}" ${known})
        if(${known})
            add_compile_options(${flag})
        endif()
    endforeach()
    # Some distributions' compilers define it already: take that away before setting our own.
    add_compile_options(-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
    add_link_options(-Wl,-z,relro,-z,now)
endif()
add_link_options(-Wl,--as-needed)

if(IPC_PLANT)
    string(TOUPPER "${IPC_PLANT}" ipc_plant)
    string(MAKE_C_IDENTIFIER "${ipc_plant}" ipc_plant)
    add_compile_definitions(IPC_PLANT_${ipc_plant}=1)
endif()

# What every target of the tree but the examples sees: `#include "libipc/lane/lane.h"`, `#include "proto/…"`,
# `#include <ipc/ipc.h>`. The examples see the public headers alone, like anybody's program.
add_library(ipc-house INTERFACE)
target_include_directories(ipc-house INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/libipc/include")
# Empty, not 1: a file that says `#define _GNU_SOURCE` itself repeats it without a warning.
target_compile_definitions(ipc-house INTERFACE "_GNU_SOURCE=" "IPCD_VERSION=\"${PROJECT_VERSION}\"")
target_link_libraries(ipc-house INTERFACE ipc-warnings)
