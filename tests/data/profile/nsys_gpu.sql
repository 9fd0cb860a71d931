-- Made by hand: no GPU was recorded. The columns are those of `nsys export --type sqlite` that its
-- documentation lists (NVTX_EVENTS, StringIds, CUPTI_ACTIVITY_KIND_*), times are nanoseconds.
-- One request of two decode steps, the second one a CUDA graph, after the end of a warm-up.
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL,
    rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER,
    endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
    eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER,
    nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL,
    correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL,
    shortName INTEGER NOT NULL, launchType INTEGER, registersPerThread INTEGER NOT NULL,
    gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL,
    blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER NOT NULL, end INTEGER NOT NULL,
    deviceId INTEGER NOT NULL, graphId INTEGER NOT NULL, graphExecId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER);
INSERT INTO StringIds VALUES (1, 'request'), (2, 'vision+ttm'), (3, 'prefill'), (4, 'decode step'),
    (5, 'score'), (6, 'attention'), (7, 'sample'), (8, 'steady state'),
    (20, 'cudaLaunchKernel_v7000'), (21, 'cudaGraphLaunch_v10000'),
    (30, 'sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64'), (31, 'flash_fwd_kernel'),
    (32, '_attend'), (33, '_score'), (34, 'elementwise_kernel');
-- Process 100 (globalTid = process << 24 | thread): 100 << 24 = 1677721600. Event type 75 names a
-- domain, 59 are ranges pushed and popped, 60 ranges begun and ended.
INSERT INTO NVTX_EVENTS VALUES
    (0, NULL, 75, NULL, NULL, NULL, 'dycoke', 1677721601, NULL, NULL, 1),
    (0, NULL, 75, NULL, NULL, NULL, 'NCCL', 1677721601, NULL, NULL, 2),
    (1000000, 91000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 8, 1),
    (10000000, 90000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 1, 1),
    (10000000, 30000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 2, 1),
    (30000000, 60000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 3, 1),
    (30000000, 60000000, 59, NULL, NULL, NULL, 'prefill', 1677721601, NULL, NULL, 2),
    (60000000, 76000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 4, 1),
    (61000000, 64000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 5, 1),
    (65000000, 72000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 6, 1),
    (73000000, 75000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 7, 1),
    (76000000, 88000000, 59, NULL, NULL, NULL, NULL, 1677721601, NULL, 4, 1);
INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES
    (2000000, 2005000, 0, 1677721601, 1, 20, 0, NULL),
    (11000000, 11005000, 0, 1677721601, 2, 20, 0, NULL),
    (31000000, 31005000, 0, 1677721601, 3, 20, 0, NULL),
    (31100000, 31105000, 0, 1677721601, 4, 20, 0, NULL),
    (62000000, 62005000, 0, 1677721601, 5, 20, 0, NULL),
    (66000000, 66005000, 0, 1677721601, 6, 20, 0, NULL),
    (77000000, 77020000, 0, 1677721601, 7, 21, 0, NULL),
    -- Another process, whose calls have the same correlation ids.
    (74000000, 74005000, 0, 3355443201, 3, 20, 0, NULL);
INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES
    (3000000, 4000000, 0, 1, 7, 1, 1677721600, 34, 34, 1, 32, 64, 1, 1, 128, 1, 1, NULL),
    (12000000, 28000000, 0, 1, 7, 2, 1677721600, 30, 30, 1, 168, 64, 1, 1, 128, 1, 1, NULL),
    (32000000, 50000000, 0, 1, 7, 3, 1677721600, 30, 30, 1, 168, 64, 1, 1, 128, 1, 1, NULL),
    (50000000, 58000000, 0, 1, 7, 4, 1677721600, 31, 31, 1, 255, 32, 14, 1, 128, 1, 1, NULL),
    (62500000, 63500000, 0, 1, 7, 5, 1677721600, 33, 33, 1, 64, 8, 2, 1, 128, 1, 1, NULL),
    (66500000, 71500000, 0, 1, 7, 6, 1677721600, 32, 32, 1, 96, 8, 2, 1, 128, 1, 1, NULL);
INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (77500000, 87500000, 0, 1, 2, 1, 7, 7, 1677721600);
