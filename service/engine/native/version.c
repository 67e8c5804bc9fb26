/* Changes with the functions here; ../compiled.py has the same and takes no other. */

int taskpack_version(void) { return 3; }
