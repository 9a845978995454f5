// The program of every link test (cmake/epic.cmake): that it links is the test.
int main() { return 0; }
