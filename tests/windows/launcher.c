/* python.exe: loads python313.dll, which lies beside it, and calls Py_Main. */
#include <stdio.h>
#include <windows.h>

typedef int (*Main)(int, wchar_t **);

int wmain(int argc, wchar_t **argv) {
    HMODULE dll = LoadLibraryW(L"python313.dll");
    if (!dll) {
        fprintf(stderr, "python.exe: python313.dll cannot be loaded: error %lu\n", GetLastError());
        return 101;
    }
    Main run = (Main)(void *)GetProcAddress(dll, "Py_Main");
    return run ? run(argc, argv) : 102;
}
