// The former place of core/files.h.
#pragma once
#include "core/files.h"
