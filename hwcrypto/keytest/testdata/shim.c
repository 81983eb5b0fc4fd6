// A PKCS#11 module in front of another: it passes everything on, and does wrong what its control directory says.
//
//   CONTROL/sleep    C_Sign takes so many seconds
//   CONTROL/hang     C_Sign does not return while the file is there
//   CONTROL/rv       C_Sign returns this value, in hexadecimal, and the file is removed
//   CONTROL/logins   a line is added for each C_Login

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#define CK_PTR *
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

static CK_FUNCTION_LIST_PTR real;
static CK_FUNCTION_LIST list;

static CK_RV sign(CK_SESSION_HANDLE s, CK_BYTE_PTR in, CK_ULONG inLen, CK_BYTE_PTR out, CK_ULONG_PTR outLen) {
	FILE *f;
	unsigned long v = 0;
	if (!out) return real->C_Sign(s, in, inLen, out, outLen); // only asks for the length
	while (access(CONTROL "/hang", F_OK) == 0) usleep(20000);
	if ((f = fopen(CONTROL "/sleep", "r"))) {
		if (fscanf(f, "%lu", &v) == 1) sleep(v);
		fclose(f);
	}
	if ((f = fopen(CONTROL "/rv", "r"))) {
		int n = fscanf(f, "%lx", &v);
		fclose(f);
		if (n == 1 && unlink(CONTROL "/rv") == 0) return v;
	}
	return real->C_Sign(s, in, inLen, out, outLen);
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE u, CK_UTF8CHAR_PTR pin, CK_ULONG n) {
	FILE *f = fopen(CONTROL "/logins", "a");
	if (f) {
		fputs("login\n", f);
		fclose(f);
	}
	return real->C_Login(s, u, pin, n);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out) {
	CK_C_GetFunctionList get;
	void *h = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
	if (!h || !(get = (CK_C_GetFunctionList)dlsym(h, "C_GetFunctionList")) || get(&real) != CKR_OK) return CKR_GENERAL_ERROR;
	list = *real;
	list.C_Sign = sign;
	list.C_Login = login;
	*out = &list;
	return CKR_OK;
}
