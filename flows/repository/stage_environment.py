"""The environment variables of stages: those of a list, and no others, such as the password of a server.

Stages are commands of a revision, which may be somebody's branch. A `dvc repro` by hand passes on everything.
"""

import os
from fnmatch import fnmatchcase

from flows.repository.git import environment

#: What every stage gets, as names and patterns, by purpose.
PASSED = {
    "user, folders": "HOME USER LOGNAME SHELL PATH TMPDIR TEMP TMP XDG_* HOSTNAME",
    "language, time": "LANG LANGUAGE LC_* TZ",
    "Python, libraries": "PYTHON* VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH LD_PRELOAD MALLOC_* "
    "GLIBC_TUNABLES MPLBACKEND MPLCONFIGDIR",
    "compiler": "CC CXX CFLAGS CXXFLAGS LDFLAGS CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH LIBRARY_PATH",
    "processors": "OMP_* MKL_* KMP_* GOMP_* OPENBLAS_* NUMEXPR_* ONEDNN_* DNNL_* ATEN_*",
    "GPUs": "CUDA_* CUDNN_* CUBLAS_* NVIDIA_* NCCL_* GLOO_* UCX_* FI_* TORCH* PYTORCH_* TRITON_* HIP_* HSA_* "
    "ROCM_* ROCR_* MIOPEN_*",
    "proxies": "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy",
    "certificates": "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE AWS_CA_BUNDLE",
    "git": "GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM GIT_CONFIG_NOSYSTEM GIT_CEILING_DIRECTORIES "
    "GIT_DISCOVERY_ACROSS_FILESYSTEM GIT_TERMINAL_PROMPT",
    "DVC": "DVC_GLOBAL_CONFIG_DIR DVC_SYSTEM_CONFIG_DIR DVC_SITE_CACHE_DIR DVC_NO_ANALYTICS",
    "cluster job": "SLURM_JOB_ID SLURM_JOB_GPUS SLURM_CPUS_PER_TASK SLURM_TMPDIR",
    "this project": "RETRAIN_* PREFECT__FLOW_RUN_ID",
}

#: Credentials of data sources, which only the stages in WITH_CREDENTIALS get.
CREDENTIALS = "AWS_* KAGGLE_* KAGGLEHUB_* NETRC"

WITH_CREDENTIALS = ("download", "download_external")

#: Environment variable with more names and patterns, separated by spaces, that every stage gets.
MORE = "RETRAIN_STAGE_VARIABLES"


def stage_environment(stage: str) -> dict[str, str]:
    """Return the environment for a stage, such as download or train@NAME."""
    lists = [*PASSED.values(), os.environ.get(MORE, "")]
    if stage.partition("@")[0] in WITH_CREDENTIALS:
        lists.append(CREDENTIALS)
    patterns = " ".join(lists).split()
    return {
        name: value
        for name, value in environment().items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
