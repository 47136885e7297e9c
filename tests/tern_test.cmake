# tern_test(engine.tokenizer LIB engine SOURCES test_tokenizer.c [LINKS …] [PLAIN])
#
# A test binary named test_engine_tokenizer, run as `ctest -R engine.tokenizer`. It links the WHOLE archive of its
# folder's library and only what that library may use, so that a call which runs up the arrows fails to link.
# PLAIN: a plain main() instead of Criterion. Criterion 2.4.1 stops under
# ThreadSanitizer, so only tests/threads and tests/system are built there.
# Exit status 77 means skipped, with the reason printed. A test that prints a sanitizer's report has failed, even when
# Criterion counts it passed.
pkg_check_modules(criterion REQUIRED IMPORTED_TARGET criterion)

function(tern_test name)
  cmake_parse_arguments(ARG "PLAIN" "LIB;TIMEOUT" "SOURCES;LINKS;ENVIRONMENT" ${ARGN})
  string(REPLACE "." "_" target test_${name})
  add_executable(${target} ${ARG_SOURCES})
  target_link_libraries(${target} PRIVATE $<LINK_LIBRARY:WHOLE_ARCHIVE,tern_${ARG_LIB}> ${ARG_LINKS})
  if(NOT ARG_PLAIN)
    target_link_libraries(${target} PRIVATE PkgConfig::criterion)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  # The path may be absent: a test then skips with a visible message.
  add_test(NAME ${name} COMMAND ${target})
  tern_test_properties(${name} ${ARG_TIMEOUT})
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT ${ARG_ENVIRONMENT})
endfunction()

# What every test shares, also the scripts added with add_test().
function(tern_test_properties name timeout)
  set_tests_properties(${name} PROPERTIES
    TIMEOUT ${timeout} SKIP_RETURN_CODE 77
    FAIL_REGULAR_EXPRESSION "Sanitizer: ;runtime error: ")
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT
    "TERN_SOURCE=${CMAKE_SOURCE_DIR}" "TERN_BUILD=${CMAKE_BINARY_DIR}" "TERN_SHARED=${CMAKE_SOURCE_DIR}/../shared"
    "ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1" "UBSAN_OPTIONS=print_stacktrace=1")
endfunction()
