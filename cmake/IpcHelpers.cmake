# SPDX-License-Identifier: Apache-2.0

# ipc_glob(<var> [RECURSE] <pattern>...): the C sources of the current folder that match, known anew at each build.
macro(ipc_glob var)
    if("${ARGV1}" STREQUAL "RECURSE")
        set(ipc_glob_patterns ${ARGN})
        list(REMOVE_AT ipc_glob_patterns 0)
        file(GLOB_RECURSE ${var} CONFIGURE_DEPENDS ${ipc_glob_patterns})
    else()
        file(GLOB ${var} CONFIGURE_DEPENDS ${ARGN})
    endif()
    list(SORT ${var})
endmacro()

# ipc_link_existing(<target> <library target>...): links those that exist, so that the tree configures at any
# moment of its growth.
function(ipc_link_existing target)
    foreach(library IN LISTS ARGN)
        if(TARGET ${library})
            target_link_libraries(${target} PRIVATE ${library})
        endif()
    endforeach()
endfunction()

# ipc_split_main(<sources variable> <main variable>): moves the file that defines main() from the one list to the
# other, so that tests can link the rest. Known anew whenever CMake runs: another file's arrival makes it run.
macro(ipc_split_main sources main)
    set(${main} "")
    foreach(ipc_source IN LISTS ${sources})
        file(STRINGS "${ipc_source}" ipc_found REGEX "^(int )?main\\(" LIMIT_COUNT 1)
        if(ipc_found)
            list(APPEND ${main} "${ipc_source}")
        endif()
    endforeach()
    if(${main})
        list(REMOVE_ITEM ${sources} ${${main}})
    endif()
endmacro()

# The programs that a person runs (not tests): what `./dev run` and `./dev bench` need built.
add_custom_target(programs)
function(ipc_program target)
    add_dependencies(programs ${target})
endfunction()
