# Read by CMake right after project(llama_cpp): what llama-cpp-python needs of llama.cpp, built as quickly as it can be
# without making it slower.
#
# llama-cpp-python forces the common library on through the cache; a normal variable, set here, shadows the cache entry
# (CMP0126). The library holds the command-line tools' helpers, which nothing in Python can reach.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_ALL_WARNINGS OFF)

# Called when all targets are known. All arithmetic on tensors is in ggml, which keeps -O3. libllama builds graphs and
# loads files: -O1 and one precompiled header take a third off its compilation, and neither prefill nor decode changes.
# Sampling and grammars walk the whole vocabulary for each token, so they keep -O3.
function(kith_quicken)
    get_target_property(llama llama SOURCE_DIR)
    get_target_property(base ggml-base SOURCE_DIR)
    get_target_property(cpu ggml-cpu SOURCE_DIR)
    if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
        target_compile_options(llama PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-O1>")
        set_source_files_properties(
            ${llama}/llama-sampler.cpp ${llama}/llama-grammar.cpp
            TARGET_DIRECTORY llama PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_OPTIONS -O3)
        set_source_files_properties(
            ${base}/gguf.cpp ${base}/ggml-backend-meta.cpp ${base}/ggml-opt.cpp
            TARGET_DIRECTORY ggml-base PROPERTIES COMPILE_OPTIONS -O1)
    endif()
    if(NOT CMAKE_CXX_COMPILER_LAUNCHER) # ccache does better without
        target_precompile_headers(llama PRIVATE
            "$<$<COMPILE_LANGUAGE:CXX>:${llama}/models/models.h>"
            "$<$<COMPILE_LANGUAGE:CXX>:${llama}/llama-kv-cache.h>"
            "$<$<COMPILE_LANGUAGE:CXX>:${llama}/llama-model-loader.h>"
            <algorithm> <fstream> <functional> <map> <sstream> <unordered_map>)
    endif()
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        set_source_files_properties(
            ${cpu}/ggml-cpu/amx/mmq.cpp TARGET_DIRECTORY ggml-cpu
            PROPERTIES COMPILE_OPTIONS "-include;${CMAKE_CURRENT_FUNCTION_LIST_DIR}/llama-amx.h")
    endif()
endfunction()
cmake_language(DEFER CALL kith_quicken)
