/* The floor: the least that a durable answer costs.
 *
 * Reads requests from standard input as lightningd sends them, appends each one as it is to the
 * file named in its argument, puts it on stable storage, and answers `continue`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t capacity = 1 << 26, used = 0;
	char *buffer = malloc(capacity), answer[256];
	int file = argc == 2 ? open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;

	if (file < 0 || !buffer)
		return 1;
	for (;;) {
		ssize_t got = read(0, buffer + used, capacity - used);
		char *end;

		if (got <= 0)
			return 0;
		used += got;
		while ((end = memmem(buffer, used, "\n\n", 2))) {
			size_t length = end + 2 - buffer;
			char *id = memmem(buffer, length, "\"id\":", 5) + 5;
			int id_length = strchr(id + 1, '"') + 1 - id;
			int answer_length = snprintf(
				answer, sizeof(answer),
				"{\"jsonrpc\":\"2.0\",\"id\":%.*s,\"result\":{\"result\":\"continue\"}}\n\n",
				id_length, id);

			if (write(file, buffer, length) != (ssize_t)length || fdatasync(file))
				return 2;
			if (write(1, answer, answer_length) != answer_length)
				return 3;
			used -= length;
			memmove(buffer, buffer + length, used);
		}
	}
}
