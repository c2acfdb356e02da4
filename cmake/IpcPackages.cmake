# SPDX-License-Identifier: Apache-2.0
#
# Libraries from outside. The missing of a required one is said here, once, with its Debian name; an optional
# one leaves out what needs it.

find_package(PkgConfig REQUIRED)

set(ipc_missing "")
function(ipc_require var module debian)
    pkg_check_modules(${var} QUIET IMPORTED_TARGET GLOBAL ${module})
    if(NOT ${var}_FOUND)
        list(APPEND ipc_missing ${debian})
        set(ipc_missing "${ipc_missing}" PARENT_SCOPE)
    endif()
endfunction()
function(ipc_optional var module)
    pkg_check_modules(${var} QUIET IMPORTED_TARGET GLOBAL ${module})
endfunction()

ipc_require(PROTOBUFC libprotobuf-c libprotobuf-c-dev)
ipc_require(SYSTEMD libsystemd libsystemd-dev)
ipc_require(INIH inih libinih-dev)
ipc_require(JANSSON jansson libjansson-dev)
find_program(IPC_PROTOC_C protoc-c)
if(NOT IPC_PROTOC_C)
    list(APPEND ipc_missing protobuf-c-compiler)
endif()
if(IPC_TESTS)
    ipc_require(CMOCKA cmocka libcmocka-dev)
endif()
if(ipc_missing)
    string(JOIN " " ipc_missing ${ipc_missing})
    message(FATAL_ERROR "Missing: ${ipc_missing}\nOn Debian: apt-get install ${ipc_missing}\n"
                        "(`./dev build` installs all that the build needs.)")
endif()

ipc_optional(ZMQ libzmq)
ipc_optional(REDIS hiredis)
ipc_optional(UV libuv)
ipc_optional(GLIB glib-2.0)
ipc_optional(CRYPTO libcrypto)
ipc_optional(NCURSES ncursesw)
find_program(IPC_SCDOC scdoc)
find_program(IPC_SPIN spin)
find_package(Threads REQUIRED)
