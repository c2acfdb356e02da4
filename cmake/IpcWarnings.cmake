# SPDX-License-Identifier: Apache-2.0
#
# The warnings of the house. A flag that this compiler lacks is dropped. Target `ipc-warnings` carries them; it
# is linked by every target of the tree, but not by generated code.

include(CheckCCompilerFlag)

set(ipc_warning_flags
    -Wall                           # the compiler's own base set
    -Wextra                         # the rest of the base set
    -Wbad-function-cast             # a call's result cast to an unrelated type hides a wrong prototype
    -Wcomma                         # a comma where a semicolon was meant
    -Wconditional-uninitialized     # a variable that one path leaves unset (clang)
    -Wconversion                    # a length that loses bits is how a size check is bypassed
    -Wdate-time                     # two builds of the same source shall be the same
    -Wdouble-promotion              # float never silently becomes double
    -Wduplicated-branches           # if and else do the same: copy and paste
    -Wduplicated-cond               # the same condition twice in an else-if chain
    -Wformat=2                      # format strings are literals and match their arguments
    -Wformat-signedness             # %u gets an unsigned
    -Wimplicit-fallthrough          # a fall-through is said, never forgotten
    -Winit-self                     # int x = x;
    -Wlogical-op                    # && where & was meant
    -Wmissing-prototypes            # a global function has a header, or is static
    -Wmissing-variable-declarations # a global variable has a header, or is static
    -Wnested-externs                # declarations live in headers
    -Wold-style-definition          # no K&R definitions
    -Wredundant-decls               # declared once
    -Wshadow                        # one name, one thing
    -Wshift-overflow=2              # a shift into the sign bit
    -Wstrict-prototypes             # f(void), not f()
    -Wthread-safety                 # honours lock annotations where there are some (clang)
    -Wtrampolines                   # a nested function's address needs an executable stack
    -Wundef                         # a misspelt name in #if is not 0
    -Wvla                           # no stack size that a peer could choose
    -Walloca                        # the same for alloca()
    -Wwrite-strings                 # string literals are const
    # Left out, each for a reason:
    -Wno-missing-field-initializers # {0} and argp/option tables rely on the rest being zero
    -Wno-sign-conversion            # part of gcc's -Wconversion; drowns the losses of bits in noise
    -Wno-unused-parameter           # callbacks have the signature that their caller wants
    -Wno-unknown-warning-option     # clang: a flag of a later version, met in a pragma
    -Wno-unused-command-line-argument # clang: a link flag that a given step does not use
)

add_library(ipc-warnings INTERFACE)
foreach(flag IN LISTS ipc_warning_flags)
    # A compiler accepts every unknown -Wno-*; ask for the positive form.
    string(REGEX REPLACE "^-Wno-" "-W" probe "${flag}")
    string(MAKE_C_IDENTIFIER "IPC_HAS${probe}" known)
    set(CMAKE_REQUIRED_QUIET ON)
    check_c_compiler_flag("-Werror ${probe}" ${known})
    if(${known})
        target_compile_options(ipc-warnings INTERFACE "$<$<COMPILE_LANGUAGE:C>:${flag}>")
    endif()
endforeach()
if(IPC_WERROR)
    target_compile_options(ipc-warnings INTERFACE -Werror)
endif()
