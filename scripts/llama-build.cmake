# Read by CMake right after project(llama_cpp): what llama-cpp-python needs of llama.cpp, and no more.
#
# llama-cpp-python forces the common library on through the cache; a normal variable, set here, shadows the cache entry
# (CMP0126). The library holds the command-line tools' helpers, which nothing in Python can reach.
set(LLAMA_BUILD_COMMON OFF)
set(LLAMA_ALL_WARNINGS OFF)
